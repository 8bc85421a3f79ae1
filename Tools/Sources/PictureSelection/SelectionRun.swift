public import PS3
public import SparseKernels
public import SparseKernelsModels

/// One selection of patches of a picture, with the seconds of its parts.
public struct SelectionRun: Sendable {
    /// What is looked for.
    public enum Prompt: Sendable, Equatable {
        /// What differs from the mean of the picture.
        case standingOut
        /// What resembles a region.
        case like(PictureBox)
    }

    public let picture: PS3Picture
    public let map: PS3ScoreMap
    public let selection: PS3Selection
    /// The tokens of low resolution and of the selected patches.
    public let tokens: Int
    public let seconds: Seconds

    /// The seconds of the parts of a run.
    public struct Seconds: Sendable {
        /// The pass at low resolution.
        public var looking = 0.0
        /// The score map and the choice of patches.
        public var selecting = 0.0
        /// Patches, positions and layers of high resolution.
        public var encoding = 0.0
    }

    /// Looks at a picture, selects patches and encodes them.
    ///
    /// - Parameters:
    ///   - planes: `[3, rows, columns]`, normalised.
    ///   - prompt: what is looked for.
    ///   - passes: of the model's budget.
    ///   - pool: the threads to use.
    ///   - began: called with the name of each part as it begins.
    /// - Throws: `.invalidArgument` for a box outside the picture or no passes, and the errors of the encoder.
    public init(
        _ model: PS3VisionModel, planes: Tensor<Float>, prompt: Prompt, passes: Int = 1, on pool: WorkerPool = .shared,
        began: (String) -> Void = { _ in }
    ) throws(SparseKernelsError) {
        guard passes >= 1 else {
            throw SparseKernelsError(.invalidArgument, "passes", expected: "at least 1", actual: "\(passes)")
        }
        let clock = ContinuousClock()
        func measured<Value>(
            _ name: String, into seconds: inout Double, _ body: () throws(SparseKernelsError) -> Value
        ) throws(SparseKernelsError) -> Value {
            began(name)
            let start = clock.now
            let value = try body()
            seconds += (clock.now - start) / .seconds(1)
            return value
        }
        var seconds = Seconds()
        let encoder = model.encoder
        let picture = try measured("low resolution", into: &seconds.looking) { () throws(SparseKernelsError) in
            try encoder.look(at: planes, on: pool)
        }
        let (map, selections) = try measured("selection", into: &seconds.selecting) {
            () throws(SparseKernelsError) -> (PS3ScoreMap, [PS3Selection]) in
            let vector =
                switch prompt {
                case .standingOut: try model.promptForWhatStandsOut(in: picture)
                case .like(let box): try model.prompt(like: box, in: picture)
                }
            let map = try encoder.scoreMap(of: picture, prompt: vector, on: pool)
            var selector = try encoder.selector(for: picture, map, on: pool)
            var selections: [PS3Selection] = []
            for _ in 0..<passes where selector.remaining > 0 {
                selections.append(try selector.next(encoder.configuration.budget))
            }
            return (map, selections)
        }
        var made: [PS3Pass] = []
        for (index, selection) in selections.enumerated() {
            let pass = try measured("pass \(index + 1)", into: &seconds.encoding) { () throws(SparseKernelsError) in
                try encoder.encode(selection, of: picture, on: pool)
            }
            made.append(pass)
        }
        let encoding = try PS3Encoding(picture: picture, map: map, passes: made)
        self.picture = picture
        self.map = map
        selection = encoding.selection
        tokens = picture.tokens.shape[0] + selection.count
        self.seconds = seconds
    }

    /// A row of the table of scales: the square's side, the picture's pixels and patches, and what was selected.
    public struct ScaleRow: Sendable, Equatable {
        public var side: Int
        public var size: GridSize
        public var grid: GridSize
        public var budget: Int
        public var selected: Int
    }

    /// The rows of all high-resolution scales.
    public func scaleRows(of model: PS3VisionModel) throws(SparseKernelsError) -> [ScaleRow] {
        let (scales, budget) = (model.encoder.configuration.scales, model.encoder.configuration.budget)
        var rows: [ScaleRow] = []
        for (index, grid) in picture.grids.enumerated() {
            rows.append(
                ScaleRow(
                    side: scales.sides[index + 1], size: try scales.pixels(index + 1, of: picture.size), grid: grid,
                    budget: budget.perScale[index], selected: selection.cells[index].count))
        }
        return rows
    }
}
