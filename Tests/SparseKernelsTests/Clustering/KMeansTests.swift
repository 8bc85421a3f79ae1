import SparseKernels
import SparseKernelsReference
import TestSupport
import Testing

/// k-means against the oracle, and what a user would state about clusters.
@Suite("k-means")
struct KMeansTests {
    /// Rows around `blobs` centres, so that clusters exist.
    static func blobs<Element: AttentionElement>(
        _ type: Element.Type, heads: Int, points: Int, channels: Int, blobs: Int, seed: UInt64
    ) throws -> Tensor<Element> {
        let centres = try Tensor<Float>.normal([heads, blobs, channels], seed: seed, scale: 2)
        let noise = try Tensor<Float>.normal([heads, points, channels], seed: seed + 1, scale: 0.7)
        return try Tensor<Element>([heads, points, channels]) { index in
            let (row, channel) = index.quotientAndRemainder(dividingBy: channels)
            let blob = row % points * 7 % blobs
            return Element(noise[flat: index] + centres[flat: (row / points * blobs + blob) * channels + channel])
        }
    }

    static func rows(_ tensor: Tensor<Float>, head: Int) -> [[Double]] {
        let (count, channels) = (tensor.shape[1], tensor.shape[2])
        return (0..<count).map { row in (0..<channels).map { Double(tensor[flat: (head * count + row) * channels + $0]) } }
    }

    /// Labels must be those of the oracle unless two distances are within rounding. The distance is a sum of d products in
    /// single precision, of magnitude (‖x‖ + ‖c‖)², so near means within 2(√d + 4)·u of that.
    static func expectNearest<Element: AttentionElement>(
        _ clusters: Clustering, _ points: Tensor<Element>, to centroids: Tensor<Float>, _ label: String
    ) throws {
        for head in 0..<points.shape[0] {
            let reference = ReferenceKMeans(try points.view(), head: head)
            let centres = rows(centroids, head: head)
            let expected = reference.labels(centres)
            for point in 0..<points.shape[1] {
                let actual = Int(clusters.labels[flat: head * points.shape[1] + point])
                if actual == expected[point] { continue }
                let norms = (reference.points[point] + centres[actual] + centres[expected[point]]).reduce(0) { $0 + $1 * $1 }
                let bound = 2 * (Double(points.shape[2]).squareRoot() + 4) * 0x1p-24 * 2 * norms
                let (a, b) = (
                    reference.distance(point, to: centres[actual]), reference.distance(point, to: centres[expected[point]])
                )
                #expect(a - b <= bound, "\(label): head \(head), point \(point): \(a) for \(b)")
            }
        }
    }

    /// Means must be those of the oracle from the same labels, within the rounding of sums of 16 rows and of the result.
    static func expectMeans<Element: AttentionElement>(
        _ clusters: Clustering, _ points: Tensor<Element>, keeping centroids: Tensor<Float>, _ label: String
    ) throws {
        for head in 0..<points.shape[0] {
            let reference = ReferenceKMeans(try points.view(), head: head)
            let labels = (0..<points.shape[1]).map { Int(clusters.labels[flat: head * points.shape[1] + $0]) }
            let expected = reference.means(labels, keeping: rows(centroids, head: head))
            let largest = reference.points.flatMap { $0 }.filter(\.isFinite).map(abs).max() ?? 0
            for (actual, expected) in zip(rows(clusters.centroids, head: head), expected) {
                for (a, e) in zip(actual, expected) { #expect(abs(a - e) <= 17 * 0x1p-24 * largest, "\(label)") }
            }
        }
    }

    static func check<Element: AttentionElement>(
        _ type: Element.Type, heads: Int, points: Int, channels: Int, clusters: Int, _ set: InstructionSet
    ) throws {
        let data = try blobs(type, heads: heads, points: points, channels: channels, blobs: max(1, clusters - 1), seed: 3)
        let kMeans = try KMeans(heads: heads, points: points, channels: channels, clusters: clusters, instructionSet: set)
        let start = try kMeans.initialCentroids(of: data, .uniform, seed: 5)
        let label = "\(type) \(heads)×\(points)×\(channels), \(clusters) clusters, \(set)"
        let once = try kMeans(data, from: start, iterations: 1, tolerance: 0)
        try expectNearest(once, data, to: start, label)
        try expectMeans(once, data, keeping: start, label)
        // Two iterations are one after the other.
        let twice = try kMeans(data, from: start, iterations: 2, tolerance: 0)
        let second = try kMeans(data, from: once.centroids, iterations: 1, tolerance: 0)
        #expect(twice.labels.elements == second.labels.elements && twice.centroids.bits == second.centroids.bits, "\(label)")
        for head in 0..<heads {
            // The permutation lists the rows by label, ascending, and sizes count them.
            let labels = (0..<points).map { once.labels[flat: head * points + $0] }
            let sorted = (0..<points).sorted { (labels[$0], $0) < (labels[$1], $1) }
            #expect(once.permutation.order(head: head).map { Int($0) } == sorted, "\(label)")
            #expect(once.sizes[head] == (0..<clusters).map { c in labels.count { Int($0) == c } }, "\(label)")
            #expect(try once.partition(head: head).length == points)
        }
    }

    @Test("labels and means agree with the oracle at awkward sizes", arguments: InstructionSet.available)
    func oracle(_ set: InstructionSet) throws {
        for (points, channels, clusters) in [(1, 1, 1), (7, 3, 7), (25, 16, 3), (193, 64, 9), (201, 33, 50), (130, 128, 13)] {
            try Self.check(Float.self, heads: 2, points: points, channels: channels, clusters: clusters, set)
        }
        try Self.check(Float16.self, heads: 3, points: 97, channels: 20, clusters: 6, set)
        try Self.check(BFloat16.self, heads: 1, points: 97, channels: 40, clusters: 6, set)
    }

    @Test(
        "duplicate centroids leave the higher index empty, and an empty cluster keeps its centroid",
        arguments: InstructionSet.available)
    func duplicates(_ set: InstructionSet) throws {
        let data = try Self.blobs(Float.self, heads: 1, points: 60, channels: 8, blobs: 4, seed: 9)
        let kMeans = try KMeans(points: 60, channels: 8, clusters: 4, instructionSet: set)
        let row = (0..<8).map { data[flat: $0] }
        let far = [Float](repeating: 1000, count: 8)
        let other = (0..<8).map { data[flat: 8 + $0] }
        let start = try Tensor<Float>([1, 4, 8], row + other + row + far)
        let clusters = try kMeans(data, from: start, iterations: 1)
        #expect(clusters.sizes[0][2] == 0 && clusters.sizes[0][3] == 0)
        #expect(Array(clusters.centroids.elements[16..<32]) == row + far)
    }

    @Test("iterations end by tolerance with the centroids of the assignment")
    func tolerance() throws {
        let data = try Self.blobs(Float.self, heads: 2, points: 80, channels: 4, blobs: 3, seed: 2)
        let kMeans = try KMeans(heads: 2, points: 80, channels: 4, clusters: 3)
        let start = try kMeans.initialCentroids(of: data, .plusPlus, seed: 1)
        let converged = try kMeans(data, from: start, iterations: 200)
        #expect(converged.iterations < 200)
        let again = try kMeans(data, from: converged.centroids, iterations: 5)
        #expect(again.iterations == 1 && again.centroids.bits == converged.centroids.bits)
        // A large tolerance returns the start with its own assignment.
        let stopped = try kMeans(data, from: start, iterations: 5, tolerance: 1e9)
        #expect(stopped.iterations == 1 && stopped.centroids.bits == start.bits)
        #expect(try stopped.labels.elements == kMeans.assign(data.view(), to: start).labels.elements)
    }

    @Test("every iteration lowers the inertia, and k-means++ starts lower than uniform draws on average")
    func inertia() throws {
        let data = try Self.blobs(Float.self, heads: 1, points: 600, channels: 6, blobs: 20, seed: 4)
        let kMeans = try KMeans(points: 600, channels: 6, clusters: 20)
        var sums = [KMeans.Initialization: Double]()
        for seed in UInt64(0)..<6 {
            for method in KMeans.Initialization.allCases {
                let start = try kMeans.initialCentroids(of: data, method, seed: seed)
                var last = try kMeans.assign(data.view(), to: start).inertia(head: 0)
                sums[method, default: 0] += last
                var centroids = start
                for _ in 0..<4 {
                    let step = try kMeans(data, from: centroids, iterations: 1, tolerance: 0)
                    centroids = step.centroids
                    let inertia = try kMeans.assign(data.view(), to: centroids).inertia(head: 0)
                    #expect(inertia <= last * (1 + 1e-5))
                    last = inertia
                }
            }
        }
        #expect(sums[.plusPlus]! < 0.8 * sums[.uniform]!)
    }

    @Test("first centroids are rows, those of a head do not depend on the others, and k-means++ avoids duplicates")
    func initialCentroids() throws {
        let data = try Tensor<Float>.normal([3, 40, 5], seed: 6)
        let kMeans = try KMeans(heads: 3, points: 40, channels: 5, clusters: 12)
        for method in KMeans.Initialization.allCases {
            let start = try kMeans.initialCentroids(of: data, method, seed: 11)
            for head in 0..<3 {
                let rows = Set(Self.rows(data, head: head))
                let drawn = Self.rows(start, head: head)
                #expect(drawn.allSatisfy { rows.contains($0) })
                if method == .plusPlus { #expect(Set(drawn).count == 12) }
            }
            let single = try KMeans(heads: 1, points: 40, channels: 5, clusters: 12)
            let first = try Tensor<Float>([1, 40, 5], Array(data.elements[0..<200]))
            #expect(try single.initialCentroids(of: first, method, seed: 11).elements == Array(start.elements[0..<60]))
            #expect(try kMeans.initialCentroids(of: data, method, seed: 12).bits != start.bits)
        }
        // Rows that are all equal can only be drawn again.
        let equal = try Tensor<Float>([1, 40, 5]) { _ in 1 }
        let one = try KMeans(points: 40, channels: 5, clusters: 12)
        #expect(try one.initialCentroids(of: equal, .plusPlus).elements.allSatisfy { $0 == 1 })
    }

    @Test("rows that are not finite are in cluster 0 and spoil no centroid", arguments: InstructionSet.available)
    func nonFinite(_ set: InstructionSet) throws {
        var elements = try Self.blobs(Float.self, heads: 1, points: 100, channels: 9, blobs: 5, seed: 8).elements
        for (row, value) in [(3, Float.nan), (17, .infinity), (50, -.infinity), (99, 1e30)] { elements[row * 9 + 4] = value }
        let data = try Tensor<Float>([1, 100, 9], elements)
        let kMeans = try KMeans(points: 100, channels: 9, clusters: 5, instructionSet: set)
        let start = try Tensor<Float>([1, 5, 9], Array(elements[90..<135]))
        let clusters = try kMeans(data, from: start, iterations: 6)
        #expect(clusters.centroids.elements.allSatisfy { $0.isFinite })
        for row in [3, 17, 50, 99] {
            #expect(clusters.labels[flat: row] == 0 && clusters.distances[flat: row] == .infinity)
        }
        #expect(clusters.inertia(head: 0).isFinite)
        // A centroid that is not finite gets no rows but those.
        let broken = try Tensor<Float>([1, 5, 9], [Float](repeating: .nan, count: 9) + Array(elements[90..<126]))
        #expect(try kMeans(data, from: broken, iterations: 1).sizes[0][0] == 4)
        // Nothing finite at all ends, too.
        let nothing = try Tensor<Float>([1, 100, 9]) { _ in .nan }
        #expect(try kMeans(nothing, from: kMeans.initialCentroids(of: nothing, .plusPlus), iterations: 3).sizes[0][0] == 100)
    }

    @Test("released rounding gives centroids of the element type")
    func rounding() throws {
        let data = try Self.blobs(BFloat16.self, heads: 1, points: 70, channels: 6, blobs: 4, seed: 1)
        let kMeans = try KMeans(points: 70, channels: 6, clusters: 4)
        let start = try kMeans.initialCentroids(of: data)
        let rounded = try kMeans(data, from: start, iterations: 2, roundsCentroids: true).centroids
        #expect(rounded.elements.allSatisfy { BFloat16($0).floatValue == $0 })
        #expect(try kMeans(data, from: start, iterations: 2).centroids.bits != rounded.bits)
    }

    @Test("bits are equal for 1, 2 and 7 threads and any layout", arguments: InstructionSet.available)
    func threads(_ set: InstructionSet) throws {
        let data = try Self.blobs(Float16.self, heads: 3, points: 900, channels: 24, blobs: 30, seed: 12)
        let kMeans = try KMeans(heads: 3, points: 900, channels: 24, clusters: 40, instructionSet: set)
        for method in KMeans.Initialization.allCases {
            let expected = try kMeans(
                data, from: kMeans.initialCentroids(of: data, method, on: .serial), iterations: 3, on: .serial)
            for threads in [1, 2, 7] {
                let pool = WorkerPool(threads: threads)
                let actual = try kMeans(
                    data, from: kMeans.initialCentroids(of: data, method, on: pool), iterations: 3, on: pool)
                #expect(actual.labels.elements == expected.labels.elements)
                #expect(actual.centroids.bits == expected.centroids.bits && actual.distances.bits == expected.distances.bits)
            }
            let other = try Tensor<Float16>([900, 3, 24]) { index in
                let (token, rest) = index.quotientAndRemainder(dividingBy: 72)
                return data[flat: (rest / 24 * 900 + token) * 24 + rest % 24]
            }
            let view = try other.view(layout: .nhd)
            let start = try kMeans.initialCentroids(of: view, method)
            #expect(try kMeans(view, from: start, iterations: 3).centroids.bits == expected.centroids.bits)
        }
    }

    @Test("extents and arguments out of range are errors that name them")
    func errors() throws {
        expectError(.invalidShape, "clusters", containing: "from 1 to 10", "0") {
            _ = try KMeans(points: 10, channels: 4, clusters: 0)
        }
        expectError(.invalidShape, "clusters", containing: "11") { _ = try KMeans(points: 10, channels: 4, clusters: 11) }
        expectError(.invalidShape, "clusters") { _ = try KMeans(points: 0, channels: 4, clusters: 1) }
        expectError(.invalidShape, "points") { _ = try KMeans(points: -1, channels: 4, clusters: 1) }
        expectError(.invalidShape, "heads") { _ = try KMeans(heads: 0, points: 5, channels: 4, clusters: 1) }
        expectError(.invalidShape, "channels") { _ = try KMeans(points: 5, channels: 0, clusters: 1) }
        expectError(.invalidShape, "shape") { _ = try KMeans(heads: 1 << 40, points: 1 << 20, channels: 64, clusters: 1 << 10) }
        let kMeans = try KMeans(points: 10, channels: 4, clusters: 3)
        let (data, start) = (try Tensor<Float>(zeros: [1, 10, 4]), try Tensor<Float>(zeros: [1, 3, 4]))
        expectError(.invalidShape, "points") { _ = try kMeans(Tensor<Float>(zeros: [1, 9, 4]), from: start, iterations: 1) }
        expectError(.invalidShape, "centroids", containing: "[1, 3, 4]") {
            _ = try kMeans(data, from: Tensor(zeros: [1, 2, 4]), iterations: 1)
        }
        expectError(.invalidArgument, "iterations") { _ = try kMeans(data, from: start, iterations: 0) }
        expectError(.invalidArgument, "tolerance") { _ = try kMeans(data, from: start, iterations: 1, tolerance: -.infinity) }
        expectError(.invalidArgument, "tolerance") { _ = try kMeans(data, from: start, iterations: 1, tolerance: .nan) }
    }
}
