public import SparseKernels

/// The patches that a pass encodes: cells of the grid of each high-resolution scale, in raster order.
public struct PS3Selection: Hashable, Sendable {
    /// Ascending cells of scales 1, 2, …
    public let cells: [[Int32]]

    /// - Parameter cells: the cells of scales 1, 2, …, each ascending.
    /// - Throws: `.invalidArgument` for cells that do not ascend, or are negative.
    public init(cells: [[Int32]]) throws(SparseKernelsError) {
        for (scale, list) in cells.enumerated() {
            for index in 0..<list.count {
                let before = index == 0 ? -1 : list[index - 1]
                try require(
                    list[index] > before, .invalidArgument, "cells[\(scale)][\(index)]", expected: "more than \(before)",
                    actual: "\(list[index])")
            }
        }
        self.cells = cells
    }

    init(ascending cells: [[Int32]]) { self.cells = cells }

    /// Patches of all scales.
    public var count: Int { cells.reduce(0) { $0 + $1.count } }

    /// Patches of each scale.
    public var perScale: [Int] { cells.map(\.count) }

    /// Throws unless the cells are those of grids of these sizes.
    func validate(_ grids: [GridSize]) throws(SparseKernelsError) {
        try require(
            cells.count == grids.count, .invalidShape, "selection", expected: "\(grids.count) scales",
            actual: "\(cells.count)")
        for (scale, list) in cells.enumerated() {
            guard let last = list.last else { continue }
            try require(
                Int(last) < grids[scale].count, .invalidArgument, "selection.cells[\(scale)]",
                expected: "cells below \(grids[scale].count), of \(grids[scale])", actual: "\(last)")
        }
    }
}

/// Selects patches of one picture pass by pass, none twice.
///
/// ```swift
/// var selector = try PS3Selector(map, scales, picture: size)
/// let first = try selector.next(budget)
/// let second = try selector.next(budget)      // the next best
/// ```
///
/// Each pass takes the most probable patches of every scale. The map of the first scale stands for all of them, resized without
/// interpolation, so that many patches are equally probable: of these, lower cells are taken first. What a scale has fewer patches left
/// than its budget moves to the next scale; the last scale takes what it has.
///
/// - Complexity: linear in the patches of all scales, per pass.
/// - Source: PS3 (arXiv 2503.19903), section 3.2, and `get_selection_maps` of the released code, whose order of equal patches is that of
///   `torch.topk` and is not defined.
public struct PS3Selector: Sendable {
    /// The grids of scales 1, 2, …
    public let grids: [GridSize]
    /// The probabilities of the patches, `[rows, columns]` per scale.
    public let maps: [Tensor<Float>]
    private var taken: [[Bool]]
    /// Patches that are not selected yet.
    public private(set) var remaining: Int

    /// - Parameters:
    ///   - map: the score map of the picture.
    ///   - scales: the resolutions.
    ///   - picture: the picture in pixels.
    ///   - smooths: see ``PS3ScoreMap/resized(to:smooths:instructionSet:on:)``.
    ///   - instructionSet: the level that runs; nil means what `SPARSEKERNELS_ISA` names, or the best of this machine.
    ///   - pool: the threads to use.
    /// - Throws: `.invalidShape` for a picture without pixels, `.unsupportedInstructionSet`.
    public init(
        _ map: PS3ScoreMap, _ scales: PS3Scales, picture: GridSize, smooths: Bool = false,
        instructionSet: InstructionSet? = nil, on pool: WorkerPool = .shared
    ) throws(SparseKernelsError) {
        var maps: [Tensor<Float>] = []
        for grid in try scales.highGrids(of: picture) {
            maps.append(try map.resized(to: grid, smooths: smooths, instructionSet: instructionSet, on: pool))
        }
        try self.init(maps: maps)
    }

    /// Selects by the given maps, one per scale.
    /// - Parameter maps: `[rows, columns]` each, larger for what should come first.
    /// - Throws: `.invalidShape` for no maps, another rank or a map without cells; `.invalidArgument` for a score that is not finite.
    public init(maps: [Tensor<Float>]) throws(SparseKernelsError) {
        try require(!maps.isEmpty, .invalidShape, "maps", expected: "one or more", actual: "none")
        var (grids, taken, remaining) = ([GridSize](), [[Bool]](), 0)
        for (index, map) in maps.enumerated() {
            try require(
                map.shape.count == 2 && map.count >= 1 && map.count < 1 << 31, .invalidShape, "maps[\(index)]",
                expected: "[rows, columns] with cells, fewer than 2³¹", actual: "\(map.shape)")
            try map.requireFinite(named: "maps[\(index)]")
            grids.append(GridSize(rows: map.shape[0], columns: map.shape[1]))
            taken.append([Bool](repeating: false, count: map.count))
            remaining += map.count
        }
        self.maps = maps
        self.grids = grids
        self.taken = taken
        self.remaining = remaining
    }

    /// Patches of all scales, selected or not.
    public var cellCount: Int { grids.reduce(0) { $0 + $1.count } }

    /// Selects the patches of the next pass; fewer than the budget, or none, when no more are left.
    /// - Throws: `.invalidShape` for a budget of another number of scales.
    public mutating func next(_ budget: PS3Budget) throws(SparseKernelsError) -> PS3Selection {
        try require(
            budget.perScale.count == grids.count, .invalidShape, "budget", expected: "\(grids.count) scales",
            actual: "\(budget.perScale.count)")
        var (cells, surplus) = ([[Int32]](), 0)
        for scale in 0..<grids.count {
            let wanted = budget.perScale[scale] + surplus
            let (scores, flags) = (maps[scale], taken[scale])
            let list = try TopK.select(scores: scores.span, count: wanted, excluding: flags.span)
            for cell in list { taken[scale][cell] = true }
            surplus = wanted - list.count
            remaining -= list.count
            cells.append(list.map(Int32.init))
        }
        return PS3Selection(ascending: cells)
    }

    /// All patches that passes selected so far.
    public var selected: PS3Selection {
        PS3Selection(
            ascending: taken.map { flags in
                var list: [Int32] = []
                for cell in 0..<flags.count where flags[cell] { list.append(Int32(truncatingIfNeeded: cell)) }
                return list
            })
    }
}
