internal import Foundation
public import SparseKernels

/// Converts the linear layers of a model file to SVDQuant form, one after the other, and copies the other tensors.
///
/// Each finished layer is a file of its own in OUTPUT.partial, written in one step. A run that was stopped in any way continues
/// with the missing layers. A layer is quantised again when its weight, its calibration tokens or the options have changed. The
/// output appears in one step when all layers are finished.
public struct ModelQuantizer {
    /// The progress of the run. A `Progress` that throws stops it.
    public enum Event {
        case began(ModelPlan.Layer)
        case finished(LayerReport, isReused: Bool)
    }
    public typealias Progress = (Event) throws(SparseKernelsError) -> Void

    /// The suffix after a layer's name and a dot of the metadata entry for the relative error of its output.
    static let outputErrorKey = "outputError"

    public let model: SafetensorsFile
    public let plan: ModelPlan
    public let options: QuantizationOptions
    public let calibration: CalibrationSource
    public let output: String
    private let replacesOutput: Bool

    /// Checks everything that can be checked without computing.
    ///
    /// - Parameters:
    ///   - model: the open model.
    ///   - selection: the choice of the layers that are quantised.
    ///   - options: the options of quantisation.
    ///   - calibration: the inputs of the layers.
    ///   - output: the path of the file to make.
    ///   - replacesOutput: whether an existing output may be replaced.
    /// - Throws: `.notFound` for a model without a layer to quantise, and for a calibration without one of the layers;
    ///   `.invalidShape`, `.invalidElementType`, `.invalidArgument` for the model, the calibration or the options, and for
    ///   names that would collide in the output; `.inputOutput` for an output that exists, is an input too, or is in a
    ///   read-only folder.
    public init(
        model: SafetensorsFile, selection: LayerSelection = LayerSelection(),
        options: QuantizationOptions = QuantizationOptions(),
        calibration: CalibrationSource, output: String, replacesOutput: Bool = false
    ) throws(SparseKernelsError) {
        self.model = model
        self.options = options
        self.calibration = calibration
        self.output = output
        self.replacesOutput = replacesOutput
        _ = try LayerQuantizer(options: options)
        plan = try ModelPlan(model, selection: selection, rank: options.rank)
        try plan.requireLayers(of: model)
        try calibration.check(plan.layers)
        try plan.checkNames(in: model, options)
        try checkOutput()
        try WorkDirectory.check(for: output)
    }

    private func checkOutput() throws(SparseKernelsError) {
        var others = [(path: model.name, role: "the model")]
        if case .file(let file) = calibration { others.append((file.name, "the calibration file")) }
        try OutputFile.check(output, others: others, replaces: replacesOutput)
    }

    /// Throws when the disk has too little room. Finished layers are on it already.
    private func checkRoom(_ count: Int, isComplete: Bool) throws(SparseKernelsError) {
        let layers = plan.bytes(ofLayers: count, options)
        let copies = plan.copied.reduce(0) { $0 + $1.entry.byteRange.count }
        let missing = max(0, layers - WorkDirectory.bytes(for: output))
        try OutputFile.checkRoom(
            for: missing + (isComplete ? layers + copies : 0), in: OutputFile.folder(of: output))
    }

    /// Quantises layers and writes the output.
    ///
    /// - Parameters:
    ///   - limit: the number of layers to quantise, from the first on, without an output file, to test the options. A complete
    ///     run reuses them.
    ///   - pool: the threads to use.
    ///   - progress: called for each layer.
    ///   - tick: called from time to time while a layer is quantised.
    /// - Returns: a report per layer, in the order of `plan.layers`.
    /// - Throws: the quantiser's errors, naming the layer; `.inputOutput`; the errors of `progress`. Finished layers stay.
    @discardableResult
    public func run(
        limit: Int? = nil, on pool: WorkerPool = .shared, progress: Progress = { _ throws(SparseKernelsError) in },
        tick: () -> Void = {}
    ) throws(SparseKernelsError) -> [LayerReport] {
        let count = min(limit ?? .max, plan.layers.count)
        try checkRoom(count, isComplete: limit == nil)
        let directory = try WorkDirectory(for: output)
        var reports: [LayerReport] = []
        var files: [SafetensorsFile] = []
        for layer in plan.layers.prefix(count) {
            try progress(.began(layer))
            let digest = try digest(of: layer)
            var (file, isReused) = (directory.finishedLayer(layer.name, digest: digest), true)
            if file.flatMap(report(in:)) == nil {
                file = try directory.keep(layer.name, try quantized(layer, digest: digest, on: pool, tick: tick))
                isReused = false
            }
            guard let file, let report = report(in: file) else {
                throw SparseKernelsError(
                    .inputOutput, directory.path, expected: "left alone by other programs", actual: "a changed file")
            }
            files.append(file)
            reports.append(report)
            try progress(.finished(report, isReused: isReused))
        }
        if limit == nil {
            // After hours another file may be there.
            try checkOutput()
            try directory.publish(try assembled(files, reports))
        }
        return reports
    }

    private func report(in file: SafetensorsFile) -> LayerReport? {
        file.metadata[WorkDirectory.reportKey].flatMap {
            try? JSONDecoder.reports.decode(LayerReport.self, from: Data($0.utf8))
        }
    }

    /// The digest of everything on which a layer's file depends. It starts with the version of the tool's procedure.
    private func digest(of layer: ModelPlan.Layer) throws(SparseKernelsError) -> String {
        var digest = ContentDigest()
        digest.add("1 \(layer.name) \(options)")
        try digest.add(layer.weightName, of: model)
        if let bias = layer.biasName { try digest.add(bias, of: model) }
        try calibration.add(layer, to: &digest)
        return digest.text
    }

    private func quantized(
        _ layer: ModelPlan.Layer, digest: String, on pool: WorkerPool, tick: () -> Void
    ) throws(SparseKernelsError) -> SafetensorsWriter {
        do throws(SparseKernelsError) {
            let bias: Tensor<Float>? = if let name = layer.biasName { try model.floatTensor(name) } else { nil }
            let result = try LayerQuantizer(options: options)(
                layer.name, weight: model.floatTensor(layer.weightName), bias: bias,
                calibration: calibration.tokens(for: layer),
                on: pool, tick: tick)
            var writer = result.contents
            writer.metadata[WorkDirectory.digestKey] = digest
            writer.metadata[WorkDirectory.reportKey] = try json(result.report)
            return writer
        } catch {
            throw SparseKernelsError(
                error.code, "layer \"\(printable(layer.name))\": \(error.argument)", expected: error.expected,
                actual: error.actual)
        }
    }

    /// The output: the tensors of all layers, the other tensors of the model, and the history.
    private func assembled(_ files: [SafetensorsFile], _ reports: [LayerReport]) throws(SparseKernelsError) -> SafetensorsWriter
    {
        var writer = SafetensorsWriter(metadata: model.metadata)
        for file in files {
            for entry in file.tensors { try writer.add(entry.name, from: file) }
            writer.metadata.merge(file.metadata) { _, new in new }
        }
        for (entry, _) in plan.copied { try writer.add(entry.name, from: model) }
        writer.metadata[WorkDirectory.digestKey] = nil
        writer.metadata[WorkDirectory.reportKey] = nil
        writer.metadata["sparsekernels.tool.options"] = "\(options)"
        writer.metadata["sparsekernels.tool.calibration"] = calibration.summary
        // Values that differ from run to run are left out, so that the same input gives the same bytes.
        for report in reports { writer.metadata["\(report.layer).\(Self.outputErrorKey)"] = "\(report.outputError)" }
        return writer
    }
}

/// JSON on one line, with sorted keys.
private func json(_ value: some Encodable) throws(SparseKernelsError) -> String {
    do { return String(decoding: try JSONEncoder.reports.encode(value), as: UTF8.self) } catch {
        throw SparseKernelsError(
            .invalidArgument, "report", expected: "numbers that JSON can hold", actual: error.localizedDescription)
    }
}
