public import SparseKernels

/// What PS3 knows of a picture after its low-resolution pass. It does not depend on prompts, so that several may use it.
public struct PS3Picture: Sendable {
    /// `[channels, rows, columns]`, as it was given.
    public let pixels: Tensor<Float>
    /// The grids of scales 1, 2, …
    public let grids: [GridSize]
    /// `[cells, width]`: the outputs of the last layer at low resolution, before any final norm.
    public let tokens: Tensor<Float>
    /// The outputs of the layers that were asked for, by their numbers from 0.
    public let hiddenStates: [Int: Tensor<Float>]
    /// The keys and values of every layer, to which high-resolution tokens attend.
    public let keys: [VisionKeys]
    /// `[cells, highScales · width]`: what is compared with a prompt; the first `width` columns make the score map.
    public let selectionFeatures: Tensor<Float>
    /// `[cells of detailGrid, features]`, of encoders with a detail network.
    public let detailFeatures: Tensor<Float>?
    /// The grid of the detail features.
    public let detailGrid: GridSize?

    /// The picture in pixels.
    public var size: GridSize { GridSize(rows: pixels.shape[1], columns: pixels.shape[2]) }
    /// Patches of all high-resolution scales.
    public var highPatches: Int { grids.reduce(0) { $0 + $1.count } }

    /// Bytes of keys and values, of all layers.
    public var keyByteCount: Int { keys.reduce(0) { $0 + $1.byteCount } }
}

/// How many patches are encoded, and where.
public struct PS3Request: Hashable, Sendable {
    public enum Amount: Hashable, Sendable {
        /// So many passes of the whole budget, or fewer when no patches are left.
        case passes(Int)
        /// So many patches: passes of the whole budget, and the rest in the last one.
        case patches(Int)
        /// Every patch.
        case all
    }

    public var amount: Amount
    /// Only the first high-resolution scales have a budget; nil means all. What they have no patches for moves on to the others.
    public var firstScales: Int?
    /// Whether patches are selected in large regions. See ``PS3ScoreMap/resized(to:smooths:instructionSet:on:)``.
    public var smooths: Bool

    public init(_ amount: Amount = .passes(1), firstScales: Int? = nil, smooths: Bool = false) {
        self.amount = amount
        self.firstScales = firstScales
        self.smooths = smooths
    }

    /// The budgets of the passes.
    ///
    /// - Parameters:
    ///   - budget: of a whole pass.
    ///   - grids: those of the picture.
    /// - Throws: `.invalidArgument` for no passes, no patches, or more patches than the picture has.
    func budgets(_ budget: PS3Budget, _ grids: [GridSize]) throws(SparseKernelsError) -> [PS3Budget] {
        var whole = budget
        if let firstScales { whole = try budget.limited(toFirst: firstScales) }
        var cells = 0
        for index in 0..<min(grids.count, firstScales ?? grids.count) { cells += grids[index].count }
        let most = (cells + whole.total - 1) / whole.total
        switch amount {
        case .passes(let passes):
            try require(passes >= 1, .invalidArgument, "passes", expected: "at least 1", actual: "\(passes)")
            return Array(repeating: whole, count: min(passes, most))
        case .all: return Array(repeating: whole, count: most)
        case .patches(let patches):
            try require(
                patches >= 1 && patches <= cells, .invalidArgument, "patches", expected: "1 to the \(cells) of the picture",
                actual: "\(patches)")
            var budgets = Array(repeating: whole, count: patches / whole.total)
            let rest = patches % whole.total
            if rest > 0 {
                var last = try budget.reduced(to: rest)
                if let firstScales { last = try last.limited(toFirst: firstScales) }
                budgets.append(last)
            }
            return budgets
        }
    }
}

/// One pass over selected patches.
public struct PS3Pass: Sendable {
    public let selection: PS3Selection
    /// `[patches, width]`: the outputs of the last layer, before any final norm, in raster order, scale by scale.
    public let tokens: Tensor<Float>
    /// The outputs of the layers that were asked for, by their numbers from 0.
    public let hiddenStates: [Int: Tensor<Float>]

    /// - Throws: `.invalidShape` unless the tokens are a matrix with one row per patch.
    public init(
        selection: PS3Selection, tokens: Tensor<Float>, hiddenStates: [Int: Tensor<Float>] = [:]
    ) throws(SparseKernelsError) {
        try require(
            tokens.shape.count == 2 && tokens.shape[0] == selection.count, .invalidShape, "tokens",
            expected: "[\(selection.count), width]", actual: "\(tokens.shape)")
        self.selection = selection
        self.tokens = tokens
        self.hiddenStates = hiddenStates
    }
}

/// The tokens of a picture: those of low resolution, and those of the selected patches.
public struct PS3Encoding: Sendable {
    public let picture: PS3Picture
    public let map: PS3ScoreMap
    public let passes: [PS3Pass]

    /// - Throws: `.invalidShape` for passes of another width or number of scales than the picture's.
    public init(picture: PS3Picture, map: PS3ScoreMap, passes: [PS3Pass]) throws(SparseKernelsError) {
        let width = picture.tokens.shape[1]
        for (index, pass) in passes.enumerated() {
            try pass.selection.validate(picture.grids)
            try require(
                pass.tokens.shape[1] == width, .invalidShape, "passes[\(index)].tokens", expected: "[patches, \(width)]",
                actual: "\(pass.tokens.shape)")
        }
        self.picture = picture
        self.map = map
        self.passes = passes
    }

    /// The patches of all passes.
    public var selection: PS3Selection {
        let scales = picture.grids.count
        return PS3Selection(
            ascending: (0..<scales).map { scale in passes.flatMap { $0.selection.cells[scale] }.sorted() })
    }

    /// `[low + high, width]`: the low-resolution tokens, then those of all passes in raster order, scale by scale.
    /// - Throws: `.invalidShape` for a size that overflows.
    public func tokens() throws(SparseKernelsError) -> Tensor<Float> {
        let width = picture.tokens.shape[1]
        // Where the token of a cell comes from: its pass, and its row there.
        var sources: [(cell: Int32, pass: Int, row: Int)] = []
        var firstRows = [Int](repeating: 0, count: passes.count)
        for scale in 0..<picture.grids.count {
            var ofScale: [(cell: Int32, pass: Int, row: Int)] = []
            for (pass, step) in passes.enumerated() {
                for (index, cell) in step.selection.cells[scale].enumerated() {
                    ofScale.append((cell, pass, firstRows[pass] + index))
                }
                firstRows[pass] += step.selection.cells[scale].count
            }
            sources += ofScale.sorted { $0.cell < $1.cell }
        }
        let low = picture.tokens.shape[0]
        var result = try Tensor<Float>(zeros: [low + sources.count, width])
        result.copy(low * width, from: picture.tokens, at: 0, to: 0)
        for (row, source) in sources.enumerated() {
            result.copy(width, from: passes[source.pass].tokens, at: source.row * width, to: (low + row) * width)
        }
        return result
    }
}
