public import SparseKernels

// A plan is stored as the mask of all slots, slot by slot in its heads, in the format of BlockMask with more entries:
//
//     metadata   plan: sparsekernels.paroAttention, planVersion: 1, slots, frames, height, width, textTokens, textPlacement,
//                promptTokens
//     axisOrders [heads] I32, the numbers of PAROAxisOrder

extension PAROAttentionPlan {
    private enum Name {
        static let plan = "plan"
        static let planValue = "sparsekernels.paroAttention"
        static let version = "planVersion"
        static let versionValue = "1"
        static let slots = "slots"
        static let frames = "frames"
        static let height = "height"
        static let width = "width"
        static let textTokens = "textTokens"
        static let textPlacement = "textPlacement"
        static let promptTokens = "promptTokens"
        static let orders = "axisOrders"
    }

    /// Writes the plan to `path` in one step: an existing file is either replaced by the complete new one or left as it is.
    /// - Throws: `.inputOutput`, and the errors of `safetensors()`.
    public func write(to path: String) throws(SparseKernelsError) { try safetensors().write(to: path) }

    /// The plan as the contents of a safetensors file, to which other tensors and metadata may be added.
    /// - Throws: `.invalidShape` for more heads and slots than a mask may have.
    public func safetensors() throws(SparseKernelsError) -> SafetensorsWriter {
        var writer = try BlockMask(joiningHeadsOf: masks).safetensors()
        let numbers = [
            (Name.slots, masks.count), (Name.frames, geometry.frames), (Name.height, geometry.height),
            (Name.width, geometry.width), (Name.textTokens, geometry.textTokens),
            (Name.promptTokens, geometry.promptTokens),
        ]
        for (key, number) in numbers { writer.metadata[key] = "\(number)" }
        writer.metadata[Name.plan] = Name.planValue
        writer.metadata[Name.version] = Name.versionValue
        writer.metadata[Name.textPlacement] = geometry.textPlacement.rawValue
        try writer.add(Name.orders, Tensor([heads], orders.map { Int32($0.rawValue) }))
        return writer
    }

    /// Reads a plan that `write(to:)` has written to `path`.
    /// - Throws: `.inputOutput` when the file cannot be read, and the errors of `init(_:)`.
    public init(path: String) throws(SparseKernelsError) { try self.init(SafetensorsFile(path: path)) }

    /// Reads the plan of a file, which may have other tensors as well.
    /// - Throws: `.malformedFile` when the file has another format or version, or its contents are not a plan; `.notFound` for
    ///   a missing tensor or metadata entry; `.invalidElementType` for a tensor of another type.
    /// - Complexity: O(heads · slots · blockRows + kept blocks), which is proportional to the tensors.
    public init(_ file: SafetensorsFile) throws(SparseKernelsError) {
        for (key, value) in [(Name.plan, Name.planValue), (Name.version, Name.versionValue)] {
            let text = try file.text(key)
            try file.requireMetadata(text == value, key, expected: "\"\(value)\"", actual: "\"\(text)\"")
        }
        let text = try file.text(Name.textPlacement)
        guard let placement = VideoGeometry.TextPlacement(rawValue: text) else {
            throw SparseKernelsError(
                .malformedFile, "\(file.name), metadata \"\(Name.textPlacement)\"", expected: "\"before\" or \"after\"",
                actual: "\"\(text)\"")
        }
        let frames = try file.integer(Name.frames)
        let height = try file.integer(Name.height)
        let width = try file.integer(Name.width)
        let textTokens = try file.integer(Name.textTokens)
        let promptTokens = try file.integer(Name.promptTokens)
        let slots = try file.integer(Name.slots)
        var orders: [PAROAxisOrder] = []
        for number in try file.vector(Name.orders, as: Int32.self) {
            let order = PAROAxisOrder(rawValue: Int(number))
            try file.requireTensor(
                order != nil, Name.orders, expected: "numbers from 0 to \(PAROAxisOrder.allCases.count - 1)",
                actual: "\(number)")
            orders.append(order!)
        }
        let all = try BlockMask(file)
        let (heads, overflow) = slots.multipliedReportingOverflow(by: orders.count)
        try file.requireMetadata(
            slots >= 1 && !overflow && heads == all.heads, Name.slots,
            expected: "such that slots · \(orders.count) orders are the \(all.heads) heads of the mask", actual: "\(slots)")
        self = try file.validated { () throws(SparseKernelsError) in
            let geometry = try VideoGeometry(
                frames: frames, height: height, width: width, textTokens: textTokens, textPlacement: placement,
                promptTokens: promptTokens)
            // A mask without rows needs no offsets, so that its number of heads could be anything.
            try require(
                all.grid.query.length == geometry.tokens, .invalidShape, "queryLength",
                expected: "\(geometry.tokens), the tokens of the geometry", actual: "\(all.grid.query.length)")
            var masks: [BlockMask] = []
            for slot in 0..<slots {
                masks.append(try all.heads(slot * orders.count..<(slot + 1) * orders.count))
            }
            return try PAROAttentionPlan(geometry: geometry, orders: orders, masks: masks)
        }
    }
}

extension BlockMask {
    /// One mask with the heads of several over the same grid, one after the other.
    fileprivate init(joiningHeadsOf masks: [BlockMask]) throws(SparseKernelsError) {
        var (offsets, columns): ([Int], [Int32]) = ([0], [])
        for mask in masks {
            offsets += mask.rowOffsets.dropFirst().map { $0 + columns.count }
            columns += mask.columnIndices
        }
        try self.init(
            grid: masks[0].grid, heads: masks.reduce(0) { $0 + $1.heads }, rowOffsets: offsets, columnIndices: columns)
    }

    /// Some heads of this mask.
    fileprivate func heads(_ range: Range<Int>) throws(SparseKernelsError) -> BlockMask {
        let rows = range.lowerBound * grid.blockRows...range.upperBound * grid.blockRows
        let offsets = rowOffsets[rows]
        let first = offsets.first ?? 0
        return try BlockMask(
            grid: grid, heads: range.count, rowOffsets: offsets.map { $0 - first },
            columnIndices: Array(columnIndices[first..<(offsets.last ?? first)]))
    }
}
