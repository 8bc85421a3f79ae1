import Foundation
import SparseKernelsReference
import SparseVideoGen
import TestSupport
import Testing

/// Weights of pairs of clusters, and which of them are kept.
@Suite("Selection by centroids")
struct CentroidSelectionTests {
    static func selection(
        _ mass: Double, ratio: Double = 0, clusters: Int, scale: Float = 1, _ set: InstructionSet? = nil
    ) throws -> CentroidSelection {
        try CentroidSelection(
            mass: mass, minimumKeyRatio: ratio, keyClusters: clusters, softmaxScale: scale, instructionSet: set)
    }

    static func kept(_ weights: [Float], _ mass: Double, ratio: Double = 0) throws -> [Int] {
        let rows = try Tensor<Float>([1, 1, weights.count], weights)
        return try selection(mass, ratio: ratio, clusters: weights.count)(weights: rows)[0][0]
    }

    @Test("weights are the softmax of scores, by the number of keys", arguments: InstructionSet.available)
    func weights(_ set: InstructionSet) throws {
        for (heads, kvHeads, rows, columns, channels) in [(1, 1, 1, 1, 1), (4, 2, 5, 7, 3), (2, 2, 33, 65, 128)] {
            let query = try Tensor<Float>.normal([heads, rows, channels], seed: 1)
            let key = try Tensor<Float>.normal([kvHeads, columns, channels], seed: 2)
            let sizes = (0..<kvHeads).map { head in (0..<columns).map { ($0 * 5 + head) % 4 + (columns == 1 ? 1 : 0) } }
            let scale = 1 / Double(channels).squareRoot()
            let weights = try Self.selection(0.5, clusters: columns, scale: Float(scale), set).weights(
                query: query, key: key, keySizes: sizes)
            #expect(weights.shape == [heads, rows, columns])
            for head in 0..<heads {
                let kvHead = head / (heads / kvHeads)
                for row in 0..<rows {
                    let terms = (0..<columns).map { column in
                        Double(sizes[kvHead][column])
                            * exp(
                                (0..<channels).reduce(0.0) {
                                    $0 + scale * Double(query[head, row, $1]) * Double(key[kvHead, column, $1])
                                })
                    }
                    let total = terms.reduce(0, +)
                    for column in 0..<columns {
                        let weight = weights[head, row, column]
                        if sizes[kvHead][column] == 0 { #expect(weight == 0) }
                        #expect(abs(Double(weight) - terms[column] / total) <= 1e-5 * terms[column] / total)
                    }
                }
            }
        }
    }

    @Test("clusters without keys do not take part, however near they are")
    func emptyClusters() throws {
        let query = try Tensor<Float>([1, 1, 1], [1])
        for far in [Float(1e30), .infinity, .nan] {
            let key = try Tensor<Float>([1, 3, 1], [far, 0, 0])
            let weights = try Self.selection(1, clusters: 3).weights(query: query, key: key, keySizes: [[0, 3, 1]])
            #expect(weights.elements == [0, 0.75, 0.25], "\(far)")
        }
        // Without any key there is no mass.
        let key = try Tensor<Float>([1, 2, 1], [1, 2])
        let weights = try Self.selection(1, clusters: 2).weights(query: query, key: key, keySizes: [[0, 0]])
        #expect(weights.elements == [0, 0])
        #expect(try Self.selection(1, clusters: 2)(weights: weights) == [[[]]])
    }

    @Test("the element that crosses the mass is kept, and none after it")
    func crossing() throws {
        let weights: [Float] = [0.125, 0.5, 0.25, 0.125]
        for (mass, expected) in [
            (1e-12, [1]), (0.5, [1]), (0.500_001, [1, 2]), (0.75, [1, 2]), (0.76, [0, 1, 2]), (0.875, [0, 1, 2]),
            (0.9, [0, 1, 2, 3]), (1, [0, 1, 2, 3]),
        ] {
            #expect(try Self.kept(weights, mass) == expected, "\(mass)")
        }
        // Equal weights by lower index; weights of 0 never for their mass.
        #expect(try Self.kept([0.25, 0.25, 0.25, 0.25], 0.5) == [0, 1])
        #expect(try Self.kept([0, 0.5, 0, 0.5], 1) == [1, 3])
    }

    @Test("at least the given fraction of clusters is kept, rounded down")
    func minimum() throws {
        let weights: [Float] = [0, 1, 0, 0, 0]
        for (ratio, expected) in [
            (0, [1]), (0.1, [1]), (0.2, [1]), (0.4, [0, 1]), (0.59, [0, 1]), (0.6, [0, 1, 2]), (1, [0, 1, 2, 3, 4]),
        ] {
            #expect(try Self.kept(weights, 0.9, ratio: ratio) == expected, "\(ratio)")
        }
        #expect(try Self.selection(0.9, ratio: 0.1, clusters: 500).minimumCount == 50)
        #expect(try Self.selection(0.9, ratio: 0.1, clusters: 19).minimumCount == 1)
    }

    @Test("weights that are NaN are kept: a row of a query cluster, and a key cluster")
    func notANumber() throws {
        let nan = Float.nan
        #expect(try Self.kept([nan, nan, nan], 0.1) == [0, 1, 2])
        #expect(try Self.kept([0.25, nan, 0.75], 0.5) == [1, 2])
        #expect(try Self.kept([0.25, .infinity, 0.75], 0.5) == [1, 2])
        let key = try Tensor<Float>([1, 3, 2], [0, 1, 1, 0, 2, nan])
        let query = try Tensor<Float>([1, 3, 2], [1, 1, 8, 0, nan, 0])
        let selection = try Self.selection(0.9, clusters: 3)
        let weights = try selection.weights(query: query, key: key, keySizes: [[1, 1, 1]])
        #expect((0..<3).map { weights[0, $0, 2].isNaN } == [true, true, true])
        #expect(weights[0, 0, 0] == 0.5 && weights[0, 0, 1] == 0.5)
        #expect(try selection(weights: weights) == [[[0, 1, 2], [1, 2], [0, 1, 2]]])
        // Infinite scores leave the others nothing.
        let infinite = try selection.weights(
            query: Tensor([1, 1, 2], [1, 0]), key: Tensor([1, 3, 2], [0, 0, .infinity, 0, -.infinity, 0]),
            keySizes: [[1, 1, 1]])
        #expect(try selection(weights: infinite)[0][0].contains(1))
    }

    @Test("any number of threads gives the same")
    func threads() throws {
        let query = try Tensor<Float>.normal([3, 40, 24], seed: 4)
        let key = try Tensor<Float>.normal([3, 50, 24], seed: 5)
        let selection = try Self.selection(0.7, ratio: 0.1, clusters: 50, scale: 0.2)
        let sizes = [[Int]](repeating: (0..<50).map { $0 % 7 }, count: 3)
        let results = try [1, 2, 7].map { threads in
            let pool = WorkerPool(threads: threads)
            let weights = try selection.weights(query: query, key: key, keySizes: sizes, on: pool)
            return (weights.bits, try selection(weights: weights, on: pool))
        }
        #expect(results.allSatisfy { $0.0 == results[0].0 && $0.1 == results[0].1 })
    }

    @Test("operands that disagree, and fractions out of range, are errors that name them")
    func errors() throws {
        for mass in [0, -1, 1.5, .nan] as [Double] {
            expectError(.invalidArgument, "mass") { _ = try Self.selection(mass, clusters: 3) }
        }
        for ratio in [-0.5, 1.5, .nan] as [Double] {
            expectError(.invalidArgument, "minimumKeyRatio") { _ = try Self.selection(0.5, ratio: ratio, clusters: 3) }
        }
        let selection = try Self.selection(0.5, clusters: 3)
        func zeros(_ shape: [Int]) throws -> Tensor<Float> { try Tensor(zeros: shape) }
        for (query, key) in [([2, 4, 5], [2, 3, 6]), ([3, 4, 5], [2, 3, 5]), ([4, 5], [2, 3, 5]), ([2, 4, 5], [3, 5])] {
            expectError(.invalidShape, "query") {
                _ = try selection.weights(query: zeros(query), key: zeros(key), keySizes: [[1, 1, 1], [1, 1, 1]])
            }
        }
        for sizes in [[[1, 1, 1]], [[1, 1, 1], [1, 1]]] {
            expectError(.invalidShape, "keySizes") {
                _ = try selection.weights(query: zeros([2, 4, 5]), key: zeros([2, 3, 5]), keySizes: sizes)
            }
        }
        expectError(.invalidShape, "weights") { _ = try selection(weights: zeros([4, 5])) }
    }
}
