public import SparseKernels

/// The keys with which a head of one kind is profiled, for every query token. Queries and keys are tokens of the sequence, not
/// positions of an order.
///
/// Under the clean rules these are the keys of ``SVGMask``, or those of a band of `profileFrames` frames in its place. The
/// released rules use bands of whole blocks of 128 tokens whose width does not depend on the density: with w = ⌊α·P/128⌋, a
/// query sees the keys whose blocks are less than w away from its own.
///
/// - Spatial heads count blocks in frame-major order, and temporal ones in token-major order.
/// - HunyuanVideo: text, padding included, sees and is seen by all.
/// - Wan: keys with a place below P in the order are seen by all. In token-major order these are no frame.
/// - CogVideoX: the spatial band counts blocks from the first token of the sequence, which is text, and stops where the last
///   block of the video would without text. Text sees and is seen by all in the spatial mask. In the temporal mask it neither
///   sees nor is seen, so that a sampled text token has no key there.
/// - Source: `get_attention_mask` of svg-project/Sparse-VideoGen; Xi et al., 2025, section 3.
public struct SVGProfileMask: Hashable, Sendable {
    public let geometry: VideoGeometry
    public let kind: SVGHeadKind
    private let released: SVGModel?
    /// Clean rules: the largest distance in the order of the kind. Released rules: w, in blocks.
    private let reach: Int
    private let keepsFirstFrame: Bool

    private static let block = 128

    /// - Throws: the errors of ``SVGMask``.
    public init(
        _ geometry: VideoGeometry, kind: SVGHeadKind, _ configuration: SVGConfiguration
    ) throws(SparseKernelsError) {
        try self.init(SVGMask(geometry, kind: kind, configuration), configuration)
    }

    init(_ mask: SVGMask, _ configuration: SVGConfiguration) {
        geometry = mask.geometry
        kind = mask.kind
        released = configuration.released
        keepsFirstFrame = configuration.keepsFirstFrame
        let frames = configuration.profileFrames ?? configuration.released?.profileFrames
        // A band of one token or block more than the video has keeps every key, and larger numbers may not fit.
        let tokens = frames.map {
            min($0 * Double(mask.geometry.tokensPerFrame), Double(mask.geometry.videoTokens + Self.block))
        }
        if configuration.released == nil {
            reach = tokens.map { Int($0) } ?? mask.reach
        } else {
            reach = Int(((tokens ?? 0) / Double(Self.block)).rounded(.down))
        }
    }

    /// The keys of one query token, as ascending runs that do not touch.
    /// - Complexity: O(frames).
    public func runs(of token: Int) -> [Range<Int>] {
        precondition(token >= 0 && token < geometry.tokens, "token \(token) outside \(geometry.tokens)")
        return AttentionBand.union(unsortedRuns(of: token))
    }

    private func unsortedRuns(of token: Int) -> [Range<Int>] {
        let video = geometry.video
        switch released {
        case nil:
            if geometry.padding.contains(token) { return [geometry.padding] }
            if !video.contains(token) { return [geometry.prompt, video] }
            let own = place(of: token - video.lowerBound)
            let sink =
                keepsFirstFrame && kind == .spatial ? video.lowerBound..<video.lowerBound + geometry.tokensPerFrame : 0..<0
            return tokens(at: own - reach..<own + reach + 1) + [geometry.prompt, sink]
        case .cogVideoX:
            if kind == .spatial {
                if geometry.text.contains(token) { return [0..<geometry.tokens] }
                let blocks = (geometry.videoTokens + Self.block - 1) / Self.block
                let end = min(geometry.tokens, blocks * Self.block)
                return [geometry.text] + (token < end ? [blockBand(around: token).clamped(to: 0..<end)] : [])
            }
            if geometry.text.contains(token) { return [] }
            return tokens(at: blockBand(around: place(of: token - video.lowerBound)))
        case .hunyuanVideo:
            if geometry.text.contains(token) { return [0..<geometry.tokens] }
            return [geometry.text] + tokens(at: blockBand(around: place(of: token - video.lowerBound)))
        case .wan:
            return tokens(at: 0..<geometry.tokensPerFrame) + tokens(at: blockBand(around: place(of: token)))
        }
    }

    /// The positions in blocks that are less than `reach` blocks away from the block of a position.
    private func blockBand(around position: Int) -> Range<Int> {
        if reach == 0 { return 0..<0 }
        let block = position / Self.block
        return max(0, (block - reach + 1) * Self.block)..<(block + reach) * Self.block
    }

    /// The place in the order of the kind of a token of the video, counted from the video's first.
    private func place(of token: Int) -> Int {
        if kind == .spatial { return token }
        return token % geometry.tokensPerFrame * geometry.frames + token / geometry.tokensPerFrame
    }

    /// The tokens of the video at a range of places: one run, or one in every frame.
    private func tokens(at places: Range<Int>) -> [Range<Int>] {
        let (video, frames) = (geometry.video, geometry.frames)
        let places = places.clamped(to: 0..<geometry.videoTokens)
        if kind == .spatial {
            return [places.lowerBound + video.lowerBound..<places.upperBound + video.lowerBound]
        }
        return (0..<frames).map { frame in
            // Places are p·frames + frame for p = 0, 1, …: round both ends up.
            let first = (places.lowerBound - frame + frames - 1) / frames
            let end = (places.upperBound - frame + frames - 1) / frames
            let start = video.lowerBound + frame * geometry.tokensPerFrame
            return start + first..<start + max(first, end)
        }
    }

    /// The keys of some query tokens, one block each.
    /// - Complexity: O(rows · frames).
    public func keyRuns(rows: [Int]) throws(SparseKernelsError) -> KeyRuns {
        try Self.keyRuns(rows.map { runs(of: $0) }, keyLength: geometry.tokens)
    }

    static func keyRuns(_ runs: [[Range<Int>]], keyLength: Int) throws(SparseKernelsError) -> KeyRuns {
        var offsets = [0]
        for row in runs { offsets.append(offsets[offsets.count - 1] + row.count) }
        return try KeyRuns(
            query: BlockPartition(length: runs.count, blockSize: 1), keyLength: keyLength, runOffsets: offsets,
            runs: runs.flatMap { $0 }, keyOffsets: [Int](repeating: 0, count: runs.count + 1), keys: [])
    }
}
