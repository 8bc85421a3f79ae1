internal import PS3
internal import SparseKernels

/// `ps3.sizes`: pixels and patches of pictures at every scale. Exact.
func replayPS3Sizes(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    struct Parameters: Decodable {
        var patch: Int
        var scales: [Int]
    }
    let parameters = try golden.parameters(Parameters.self)
    let scales = try PS3Scales(parameters.scales, patch: parameters.patch)
    let pictures = try golden.file.tensor("in.image_hw", as: Int32.self)
    let expected = try golden.file.tensor("out.sizes", as: Int32.self)
    var comparison = GoldenComparison()
    for index in 0..<pictures.shape[0] {
        let picture = GridSize(rows: Int(pictures[index, 0]), columns: Int(pictures[index, 1]))
        for scale in 0..<parameters.scales.count {
            let (pixels, grid) = (try scales.pixels(scale, of: picture), try scales.grid(scale, of: picture))
            for (column, value) in [pixels.rows, pixels.columns, grid.rows, grid.columns].enumerated() {
                comparison.compare(
                    "out.sizes[\(index), \(scale), \(column)], \(picture)", actual: Double(value),
                    expected: Double(expected[index, scale, column]), bound: 0)
            }
        }
    }
    return comparison.result(golden)
}

/// `ps3.budget`: patches of each scale. Exact.
func replayPS3Budget(
    _ golden: GoldenCase, _ instructionSet: InstructionSet, _ pool: WorkerPool
) throws(SparseKernelsError) -> GoldenResult {
    struct Parameters: Decodable {
        struct Variant: Decodable {
            var budget: Int
            var scales: [Int]

            enum CodingKeys: String, CodingKey {
                case budget = "max_select_num"
                case scales
            }
        }
        var variants: [String: Variant]
    }
    var comparison = GoldenComparison()
    for (name, variant) in try golden.parameters(Parameters.self).variants.sorted(by: { $0.key < $1.key }) {
        let budget = try PS3Budget(variant.budget, PS3Scales(variant.scales))
        let expected = try golden.file.tensor("out.\(name).budget", as: Int32.self).elements
        for index in 0..<max(expected.count, budget.perScale.count) {
            comparison.compare(
                "out.\(name).budget[\(index)]",
                actual: index < budget.perScale.count ? Double(budget.perScale[index]) : -1,
                expected: index < expected.count ? Double(expected[index]) : -1, bound: 0)
        }
    }
    return comparison.result(golden)
}
