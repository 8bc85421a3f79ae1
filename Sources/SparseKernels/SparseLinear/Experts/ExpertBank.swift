internal import KernelInterface

/// Experts of one shape whose activations are stored alike, as the tasks of a layer see them: as tables of plain addresses.
struct ExpertBank: Sendable {
    /// The owners of what the tables point to.
    let experts: [GatedExpert]
    let width: Int
    let hiddenWidth: Int
    /// [experts][gate, up, down] of `PanelProduct`, and [experts][input, hidden] of `ActivationCoder`.
    private let productTable: TensorStorage
    private let coderTable: TensorStorage
    let input: ActivationStorage
    let hidden: ActivationStorage
    /// Whether hidden rows are coded after the activation, by a pass of their own. Else the products read them as they are.
    let codesHidden: Bool

    /// - Parameter name: the argument that errors name.
    /// - Throws: `.invalidShape` for experts of different shapes; `.invalidArgument` for other differences that the tasks do not allow.
    init(_ experts: [GatedExpert], named name: String) throws(SparseKernelsError) {
        let first = experts[0]
        for (index, expert) in experts.enumerated() {
            let label = "\(name)[\(index)]"
            try require(
                expert.width == first.width && expert.hiddenWidth == first.hiddenWidth, .invalidShape, label,
                expected: "\(first.width) to \(first.hiddenWidth) features, as \(name)[0]",
                actual: "\(expert.width) to \(expert.hiddenWidth)")
            try require(
                expert.instructionSet == first.instructionSet, .invalidArgument, label,
                expected: "made for \(first.instructionSet), as \(name)[0]", actual: "\(expert.instructionSet)")
            try require(
                expert.activations == first.activations, .invalidArgument, label,
                expected: "activations of \(first.activations), as \(name)[0]", actual: "\(expert.activations)")
        }
        self.experts = experts
        (width, hiddenWidth) = (first.width, first.hiddenWidth)
        productTable = TensorStorage(byteCount: 3 * experts.count * MemoryLayout<PanelProduct>.stride)
        coderTable = TensorStorage(byteCount: 2 * experts.count * MemoryLayout<ActivationCoder>.stride)
        let products = productTable.pointer.assumingMemoryBound(to: PanelProduct.self)
        let coders = coderTable.pointer.assumingMemoryBound(to: ActivationCoder.self)
        for (index, expert) in experts.enumerated() {
            switch expert.projections {
            case .numbers(let gate, let up, let down):
                (products + 3 * index).initialize(to: PanelProduct(gate))
                (products + 3 * index + 1).initialize(to: PanelProduct(up))
                (products + 3 * index + 2).initialize(to: PanelProduct(down))
                (coders + 2 * index).initialize(to: ActivationCoder(gate))
                (coders + 2 * index + 1).initialize(to: ActivationCoder(down))
            case .codes(let gate, let up, let down):
                (products + 3 * index).initialize(to: PanelProduct(gate))
                (products + 3 * index + 1).initialize(to: PanelProduct(up))
                (products + 3 * index + 2).initialize(to: PanelProduct(down))
                let needsSums = gate.weight.offsets != nil || up.weight.offsets != nil
                (coders + 2 * index).initialize(to: ActivationCoder(gate, needsSums: needsSums))
                (coders + 2 * index + 1).initialize(to: ActivationCoder(down, needsSums: down.weight.offsets != nil))
            }
        }
        switch first.projections {
        case .numbers(let gate, _, let down):
            (input, hidden, codesHidden) = (ActivationStorage(gate), ActivationStorage(down), false)
        case .codes(let gate, _, let down):
            (input, hidden, codesHidden) = (ActivationStorage(gate), ActivationStorage(down), true)
        }
    }

    /// Gate, up and down of expert e from 3·e on.
    var products: UnsafePointer<PanelProduct> {
        UnsafePointer(productTable.pointer.assumingMemoryBound(to: PanelProduct.self))
    }

    /// The coders of the input and of the hidden rows of expert e from 2·e on.
    var coders: UnsafePointer<ActivationCoder> {
        UnsafePointer(coderTable.pointer.assumingMemoryBound(to: ActivationCoder.self))
    }

    // MARK: - Memory

    /// Floats from one row of outputs to the next, and of hidden floats. A cache line more than the row, as `ActivationStorage` has it.
    var outputStride: Int { (width + 15) / 16 * 16 + 16 }
    var hiddenStride: Int { codesHidden ? (hiddenWidth + 15) / 16 * 16 + 16 : hidden.stride }

    /// Bytes of the inputs, over which the outputs are written later; of the hidden floats; and of their codes.
    func byteCounts(rows: Int) -> (ends: Int, hidden: Int, codes: Int) {
        let ends = max(input.byteCount(rows: rows), rows * outputStride * 4)
        return (
            (ends + 63) / 64 * 64, (rows * hiddenStride * 4 + 63) / 64 * 64,
            codesHidden ? hidden.byteCount(rows: rows) : 0
        )
    }
}

/// What experts of one bank must have in common: how they store their activations.
private struct ExpertActivations: Equatable, CustomStringConvertible {
    struct Format: Equatable {
        var activation: ActivationFormat
        var groupSize: Int
        var zeroCode: Int32
    }
    var input: Format?
    var hidden: Format?

    var description: String {
        guard let input, let hidden else { return "numbers" }
        return "\(input.activation) in groups of \(input.groupSize), and \(hidden.activation) of \(hidden.groupSize)"
    }
}

extension GatedExpert {
    fileprivate var activations: ExpertActivations {
        guard case .codes(let gate, _, let down) = projections else { return ExpertActivations() }
        func format(_ layer: QuantizedLinear) -> ExpertActivations.Format {
            .init(activation: layer.activation, groupSize: layer.weight.layout.groupSize, zeroCode: layer.zeroCode)
        }
        return ExpertActivations(input: format(gate), hidden: format(down))
    }
}
