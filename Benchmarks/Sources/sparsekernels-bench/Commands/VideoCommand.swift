import ArgumentParser
import BenchmarkReport
import Foundation
import SparseKernels
import SparseVideoGen
import Terminal

struct VideoCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "video",
        abstract:
            "Shows the heads of a captured video model: spatial, temporal or clustered; density, recall, errors, pictures.",
        discussion: """
            The capture is a safetensors file with tensors query, key and value, [heads, tokens, headDim]; its metadata has frames, \
            tokensPerFrame and textTokens, with text first.

            Profile errors are the mean squared errors of the output on sampled rows. Recall is the part of the softmax mass that is kept.
            """)

    @OptionGroup var machine: MachineOptions

    @Option(help: "The capture.")
    var capture: String

    @Option(help: "Fraction of the pairs that spatial and temporal heads keep.")
    var density = 0.3

    @Option(help: "Clusters of queries.")
    var queryClusters = 50

    @Option(help: "Clusters of keys.")
    var keyClusters = 200

    @Option(help: "Fraction of the mass that clusters keep.")
    var mass = 0.9

    @Option(
        help: "Writes spatial.svg, temporal.svg and clustered.svg to this folder: the masks of the first head of each kind.")
    var pictures: String?

    func run() throws {
        let (set, pool) = (try machine.instructionSets()[0], try machine.pools().last!)
        let progress = ProgressLine(total: 1)
        let problem = try VideoProblem(
            Capture(path: capture), set: set, pool: pool, announce: progress.begin)
        let svg = try SVGAttention(
            problem.shape, geometry: problem.geometry, SVGConfiguration(density: density, modifiers: problem.modifiers),
            instructionSet: set)
        let svg2 = try SVG2Attention(
            problem.shape, geometry: problem.geometry,
            SVG2Configuration(
                queryClusters: queryClusters, keyClusters: keyClusters, mass: mass, modifiers: problem.modifiers),
            instructionSet: set)
        progress.begin("bands")
        let bands = try svg(query: problem.query, key: problem.key, value: problem.value, on: pool)
        progress.begin("clusters")
        let clusters = try svg2(query: problem.query, key: problem.key, value: problem.value, on: pool)
        progress.finishCase()
        progress.clear()

        let geometry = problem.geometry
        print(
            "\(problem.name): \(problem.shape.queryHeads) heads, \(geometry.frames) frames × \(geometry.tokensPerFrame) tokens, "
                + "\(geometry.textTokens) text tokens")
        let (banded, clustered) = try (
            AttentionComparison(bands.state, with: problem.exact), AttentionComparison(clusters.state, with: problem.exact)
        )
        let columns = [
            "head", "kind", "spatial err.", "temporal err.", "SVG recall %", "SVG error %", "SVG2 density %", "SVG2 recall %",
            "SVG2 error %",
        ]
        let table = TextTable(columns.map { .init($0, width: 8) })
        table.header.forEach { print($0) }
        for head in 0..<problem.shape.queryHeads {
            let errors = (0..<2).map { bands.errors[flat: $0 * problem.shape.queryHeads + head] }
            print(
                table.line(
                    [String(head), "\(bands.patterns[head])"] + errors.map { Format.scientific(Double($0)) }
                        + [banded.heads[head].recall, banded.heads[head].error].map { Format.percent($0) }
                        + [clusters.selected.density(head: head), clustered.heads[head].recall, clustered.heads[head].error]
                        .map { Format.percent($0) }))
        }
        let bandDensity = try svg.attention(over: bands.selected).density
        print(
            "all: SVG density \(Format.percent(bandDensity))%, recall \(Format.percent(banded.recall))%, error "
                + "\(Format.percent(banded.error))%; SVG2 density \(Format.percent(clusters.selected.density))%, recall "
                + "\(Format.percent(clustered.recall))%, error \(Format.percent(clustered.error))%")
        if let pictures { try draw(problem, svg, bands.selected, clusters.selected, into: pictures) }
    }

    /// Blocks of 32 tokens as they come, kept where the pair in their middle is; clusters in the order of clusters.
    private func draw(
        _ problem: VideoProblem, _ svg: SVGAttention, _ bands: SVGSelection, _ clusters: SVG2Selection, into folder: String
    ) throws {
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        func write(_ mask: BlockMask, _ name: String) throws {
            try mask.svg().write(toFile: "\(folder)/\(name).svg", atomically: true, encoding: .utf8)
        }
        let grid = try BlockGrid(problem.shape, blockSize: 32, isCausal: false)
        for kind in SVGHeadKind.allCases {
            let mask = svg.masks[kind.rawValue]
            let places = try mask.order.map { try Permutation([$0]).inverse.order(head: 0).map { Int($0) } }
            func place(_ block: Range<Int>) -> Int {
                let middle = (block.lowerBound + block.upperBound) / 2
                return places?[middle] ?? middle
            }
            let picture = try BlockMask(grid: grid) { _, row, column in
                mask.keeps(query: place(grid.query[row]), key: place(grid.key[column]))
            }
            try write(picture, "\(kind)")
        }
        let head = clusters.masks.indices.min { clusters.density(head: $0) < clusters.density(head: $1) } ?? 0
        try write(clusters.masks[head], "clustered")
    }
}
