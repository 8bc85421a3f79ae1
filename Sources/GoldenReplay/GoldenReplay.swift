internal import Foundation
public import SparseKernels

/// Replays recorded calls of the papers' own code and compares the results.
public enum GoldenReplay {
    typealias Replay =
        @Sendable (GoldenCase, InstructionSet, WorkerPool) throws(SparseKernelsError) -> GoldenResult

    /// The operations that can be replayed.
    public static var operations: [String] { replays.keys.sorted() }

    private static let replays: [String: Replay] = [
        "awq_gptq.pack": replayNibblePacking,
        "blocksparse.attention": replayBlockSparseAttention,
        "cotvla.hybrid_mask_attention": replayHybridMask,
        "draft.attention": replayDraftAttention,
        "fastdllm.transfer_index": replayFastDLLM,
        "gated_deltanet.recurrence": replayGatedDeltaRule,
        "ggml.quantize": replayGGMLQuantize,
        "gla.recurrence": replayGatedLinearAttention,
        "gna.neighborhood_attention": replayNeighborhoodAttention,
        "lightning.recurrence": replayLightning,
        "lserve.decode_select": replayLServe,
        "mamba2.ssd": replaySSD,
        "mamba1.selective_scan": replaySelectiveScan,
        "minference.index_build": replayMInferenceIndex,
        "minference.vertical_slash": replayMInferenceVerticalSlash,
        "moe.grouped_gemm": replayExperts,
        "nunchaku.pack": replayNunchakuPack,
        "nvila.dynamic_s2_merge": replayDynamicS2Merge,
        "nvila.dynamic_s2_tiles": replayDynamicS2Tiles,
        "nvila.projector": replayNVILAProjector,
        "nvila.space_to_channel": replaySpaceToChannel,
        "nvila.temporal_pooling": replayTemporalPooling,
        "nvila.w8a8_linear": replayW8A8Linear,
        "paro.attention": replayPAROAttention,
        "paro.permutation": replayPAROPermutation,
        "ps3.attention_with_low_res_prefix": replayPS3Attention,
        "ps3.budget": replayPS3Budget,
        "ps3.encode": replayPS3Encode,
        "ps3.select": replayPS3Select,
        "ps3.sizes": replayPS3Sizes,
        "qserve.omniserve_pack": replayQServePack,
        "qserve.w4a8": replayQServe,
        "quest.decode": replayQuest,
        "sla.sparse_linear_attention": replaySLA,
        "spargeattn.block_map": replaySpargeBlockMap,
        "sparselora.attention_projections": replaySparseAttention,
        "sparselora.mlp": replaySparseMLP,
        "sparselora.token_split": replayTokenSplit,
        "storm.bidirectional_mamba_layer": replaySTORMLayer,
        "storm.token_reduction": replaySTORMReduction,
        "svdquant.engine_activation_quant": replayEngineActivation,
        "svdquant.linear": replaySVDQuantLinear,
        "svg.spatial_temporal_attention": replaySparseVideoGen,
        "svg2.semantic_aware_permutation_attention": replaySVG2,
        "twilight.select_prune": replayTwilight,
        "twilight.top_p_mask": replayTopPMask,
        "xattention.estimate": replayXAttentionEstimate,
        "xattention.find_blocks": replayFindBlocks,
    ]

    /// Replays one file.
    /// - Throws: `.notFound` when no replay exists for its operation, and the errors of reading and of the operation.
    public static func run(
        path: String, instructionSet: InstructionSet, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) -> GoldenResult {
        let golden = try GoldenCase(path: path)
        guard let replay = replays[golden.operation] else {
            throw SparseKernelsError(
                .notFound, "operation of \(golden.name)", expected: "one of " + operations.joined(separator: ", "),
                actual: golden.operation)
        }
        return try replay(golden, instructionSet, pool)
    }

    /// The safetensors files among `paths`, including those in folders, in a stable order.
    /// - Throws: `.inputOutput` for a path that does not exist.
    public static func files(in paths: [String]) throws(SparseKernelsError) -> [String] {
        var files: [String] = []
        for path in paths {
            var isFolder: ObjCBool = false
            guard FileManager.default.fileExists(atPath: path, isDirectory: &isFolder) else {
                throw SparseKernelsError(.inputOutput, path, expected: "a file or folder", actual: "nothing there")
            }
            guard isFolder.boolValue else {
                files.append(path)
                continue
            }
            let names = FileManager.default.enumerator(atPath: path)?.compactMap { $0 as? String } ?? []
            files += names.filter { $0.hasSuffix(".safetensors") }.sorted().map { "\(path)/\($0)" }
        }
        return files
    }
}
