public import ArgumentParser
import CATS
import Foundation
public import LanguageMeasuring
import SparseKernels
public import SparseKernelsModels
import Terminal

extension Perplexity.Path: @retroactive ExpressibleByArgument {}

/// The model and the threads that run it.
struct ModelOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "A folder with config.json and model.safetensors. Default: the 4-bit model of the repository.",
            discussion:
                "A name such as hybrid-lm is one of the folder models of SPARSEKERNELS_DATA, where there is no such folder."))
    var model: String?

    @Option(help: "Threads. Default: as many as the process may use.")
    var threads: Int?

    func validate() throws {
        if let threads, threads < 1 { throw ValidationError("--threads takes 1 or more, got \(threads)") }
    }

    var pool: WorkerPool { threads.map { WorkerPool(threads: $0) } ?? .shared }

    var folder: String {
        get throws {
            if let model { return Self.folder(named: model) }
            if let folder = ModelData.code { return folder }
            throw ValidationError("the model of the repository is not beside this program; give --model FOLDER")
        }
    }

    /// A folder, or the model of that name in the folder of data.
    static func folder(named name: String) -> String {
        func isModel(_ folder: String) -> Bool { FileManager.default.fileExists(atPath: folder + "/config.json") }
        guard !isModel(name), let data = ProcessInfo.processInfo.environment["SPARSEKERNELS_DATA"] else { return name }
        let other = "\(data)/models/\(name)"
        return isModel(other) ? other : name
    }

    var tokenizer: any Tokenizing { get throws { try TokenizerFolder.tokenizer(of: folder) } }

    /// Loads the model.
    ///
    /// - Parameters:
    ///   - linear: nil means the form that suits the file.
    ///   - mlp: how MLPs are computed. Thresholds that are not in a file are found on the sources of the repository.
    ///   - method: the method of attention, whose routers are fitted on the same text where it needs some.
    ///   - adapter: a folder with an adapter that is added.
    func load(
        linear: LinearSpec?, mlp: MLPSpec = .dense, for method: MethodSpec? = nil, adapter: String? = nil
    ) throws -> LanguageModel {
        let model = try load(linear: linear, thresholds: mlp.thresholds(folder: folder), adapter: adapter)
        let calibrated = try mlp.calibrated(model, on: pool, text: text(for: tokenizer))
        return try method.map { try prepare(calibrated, for: $0) } ?? calibrated
    }

    /// The model with what a method of attention needs.
    func prepare(_ model: LanguageModel, for method: MethodSpec) throws -> LanguageModel {
        try RouterPlan().model(model, for: method, on: pool, text: text(for: tokenizer))
    }

    /// Makes the text of calibrations.
    private func text(for tokenizer: any Tokenizing) -> () throws(SparseKernelsError) -> TextCorpus {
        { () throws(SparseKernelsError) in
            guard let sources = ModelData.sources else {
                throw SparseKernelsError(
                    .notFound, "sources", expected: "the sources of the repository beside this program, for a calibration",
                    actual: "none; thresholds may come from sparse-lm thresholds --text FOLDER")
            }
            return try TextCorpus(path: sources, extensions: ["swift"], tokenizer: tokenizer)
        }
    }

    /// Loads the model with thresholds of CATS; nil means dense MLPs.
    func load(linear: LinearSpec?, thresholds: CATSThresholds?, adapter: String? = nil) throws -> LanguageModel {
        let folder = try folder
        return try load(folder, linear ?? LinearChoice.standard(for: folder), thresholds, adapter: adapter)
    }

    /// Loads a model, and shows how far it is when it makes low-rank branches.
    func load(
        _ folder: String, _ linear: LinearSpec, _ thresholds: CATSThresholds? = nil, adapter: String? = nil
    ) throws -> LanguageModel {
        var progress: ProgressLine?
        defer { progress?.clear() }
        return try LanguageModel(
            folder: folder, linear: linear.format, rank: linear.rank, wideLayers: linear.wideLayers, cats: thresholds,
            adapter: adapter, on: pool
        ) { loaded, layers in
            guard linear.rank ?? 0 > 0 else { return }
            if progress == nil { progress = ProgressLine.onTerminal(total: layers) }
            progress?.begin("branches of layer \(min(loaded + 1, layers))")
            progress?.finishCase()
        }
    }
}

/// What a model has learned beside its weights.
struct AdapterOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "A LoRA adapter of the model, as finetune and PEFT save it, which is added to its weights.", valueName: "folder"))
    var adapter: String?
}

/// A text to continue.
struct PromptOptions: ParsableArguments {
    @Argument(help: "The text to continue. Default: some lines of Swift.")
    var prompt: String?

    @Option(help: "A file with the text to continue.")
    var promptFile: String?

    func validate() throws {
        if prompt != nil && promptFile != nil { throw ValidationError("give a prompt or --prompt-file, not both") }
    }

    /// The bytes of the text, or of `standard` if none was given.
    func text(else standard: String) throws -> [UInt8] {
        try promptFile.map { Array(try contents(ofFile: $0)) } ?? Array((prompt ?? standard).utf8)
    }
}

/// How tokens go through a model.
struct PassOptions: ParsableArguments {
    @Option(help: "The most tokens of a pass: longer prompts go through the model in chunks.")
    var chunk: Int?

    @Option(help: "Layers, from the first on, that stay dense with a sparse method.")
    var denseLayers = 0

    @Option(
        help:
            "Last tokens of a prompt that attend to everything with a sparse prefill. Default: \(SessionOptions().denseTail).")
    var denseTail: Int?

    @Option(
        help: ArgumentHelp(
            "Gates of KV heads, as sparse-lm heads and DuoAttention have them: lserve streams those with the lowest ones.",
            valueName: "file"))
    var retrievalHeads: String?

    @Option(help: "The part of the KV heads that stream, 0 to 1, with --retrieval-heads.")
    var streamingHeads = 0.5

    func validate() throws {
        if let chunk, chunk < 1 { throw ValidationError("--chunk takes 1 or more, got \(chunk)") }
        if denseLayers < 0 { throw ValidationError("--dense-layers takes 0 or more, got \(denseLayers)") }
        if let denseTail, denseTail < 0 { throw ValidationError("--dense-tail takes 0 or more, got \(denseTail)") }
        guard (0...1).contains(streamingHeads) else {
            throw ValidationError("--streaming-heads takes 0 to 1, got \(streamingHeads)")
        }
    }

    func spec(_ method: MethodSpec, _ cache: CacheSpec) throws -> SessionSpec {
        var spec = SessionSpec(method: method, cache: cache)
        spec.chunk = chunk
        spec.denseLayers = denseLayers
        spec.denseTail = denseTail
        spec.retrievalHeads = try retrievalHeads.map { try RetrievalHeads.read($0, streaming: streamingHeads) }
        return spec
    }
}

/// The one form of a session.
struct SessionFlags: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "How linear layers are computed. Default: w4a8 for a quantised model, float16 for another.",
            discussion:
                "float32, float16, bfloat16, fp8, w4a16, w4a8, w4a4. w4a4:32 makes branches of rank 32 for weights of 16 bits; fp8:1 "
                + "leaves a layer at each end in bfloat16."),
        transform: { try LinearSpec($0) })
    var linear: LinearSpec?

    @Option(help: ArgumentHelp("How MLPs are computed.", discussion: MLPSpec.help), transform: { try MLPSpec($0) })
    var mlp = MLPSpec.dense

    // Methods and caches are read by `transform`, as its errors are shown: those of `ExpressibleByArgument` say only that a value is
    // invalid.
    @Option(
        help: ArgumentHelp("How attention is computed: PREFILL or PREFILL+DECODING.", discussion: MethodSpec.help),
        transform: { try MethodSpec($0) })
    var method = try! MethodSpec("dense")

    @Option(
        help: "How keys and values are cached: float32, float16, bfloat16, int8, int4; int4r rotates them; keys/values.",
        transform: { try CacheSpec($0) })
    var cache = CacheSpec.float16

    @OptionGroup var passes: PassOptions

    var spec: SessionSpec { get throws { try passes.spec(method, cache) } }
}

/// The text that a model is measured on.
struct TextOptions: ParsableArguments {
    @Option(help: "A text, or a folder of texts. Default: the sources of the repository.")
    var text: String?

    @Option(help: ArgumentHelp("Endings of the files of a folder, with commas between.", valueName: "endings"))
    var extensions = "swift"

    func corpus(for tokenizer: any Tokenizing) throws -> TextCorpus {
        guard let path = text ?? ModelData.sources else {
            throw ValidationError("the sources of the repository are not beside this program; give --text FOLDER")
        }
        return try TextCorpus(
            path: path, extensions: Set(extensions.split(separator: ",").map(String.init)), tokenizer: tokenizer)
    }
}

/// Whole numbers with commas between, such as 2048,8192 or 2K,8K.
struct NumberList: ExpressibleByArgument {
    let numbers: [Int]

    init(_ numbers: [Int]) { self.numbers = numbers }

    init?(argument: String) {
        var numbers: [Int] = []
        for part in argument.split(separator: ",", omittingEmptySubsequences: false) {
            let isThousands = part.hasSuffix("K") || part.hasSuffix("k")
            guard let number = Int(isThousands ? part.dropLast() : part), (0...1 << 24).contains(number) else { return nil }
            numbers.append(isThousands ? number * 1024 : number)
        }
        self.numbers = numbers
    }

    var defaultValueDescription: String {
        numbers.map { $0 >= 1024 && $0.isMultiple(of: 1024) ? "\($0 / 1024)K" : "\($0)" }.joined(separator: ",")
    }
}

extension TableCase.Kind: ExpressibleByArgument {}
