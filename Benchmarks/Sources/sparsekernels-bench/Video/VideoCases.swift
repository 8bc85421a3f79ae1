import BenchmarkReport
import SparseKernels
import SparseKernelsReference
import SparseVideoGen

/// Sparse VideoGen with every stage timed, beside dense attention of the same operands.
///
/// A dense call takes up to a minute, so there are no rows for fewer threads.
struct VideoCases: CaseFamily {
    let run: RunContext

    func section() -> Section {
        var groups: [CaseGroup] = []
        for name in isQuick ? ["video-layer4-step14"] : ["video-layer1-step6", "video-layer4-step14"] {
            guard let path = DataFiles.capture(name), let capture = try? Capture(path: path) else { continue }
            // The capture has a twelfth of the tokens of the geometries below, and as many fewer clusters.
            groups.append(
                group(name, densities: [0.3, 0.45], clusters: (50, 200), masses: [0.9], rounds: nil) { announce in
                    try VideoProblem(capture, set: instructionSet, pool: pool, announce: announce)
                })
        }
        // Latent frames × tokens of 480p with 129 frames, and of 720p with 81.
        let geometries = isQuick ? [] : [(33, 30, 52)] + (run.isLong ? [(21, 45, 80)] : [])
        for (frames, height, width) in geometries {
            let name = "\(frames)×\(height * width) d 128"
            groups.append(
                group(name, densities: [0.25, 0.3], clusters: (100, 500), masses: [0.9], rounds: 3) { announce in
                    try VideoProblem(
                        name: name, geometry: VideoGeometry(frames: frames, height: height, width: width), headDim: 128,
                        set: instructionSet, pool: pool, announce: announce)
                })
        }
        groups.append(
            contentsOf: [(8192, 128, 256), (51_480, 128, 500), (51_480, 64, 500)].filter { !isQuick || $0.0 < 10_000 }
                .map { assignment(points: $0.0, channels: $0.1, clusters: $0.2) })
        if !isQuick { groups.append(variableBlocks(tokens: 33 * 1560, headDim: 128)) }
        return Section(kind: .video, groups: groups, baselines: [BenchmarkRow.denseBaseline])
    }

    private static func svgLabels(_ density: Double) -> [String] {
        ["profile", "place", "attend", "total"].map { "svg \(density) \($0)" }
    }

    private static func svg2Labels(_ mass: Double) -> [String] {
        ["cluster", "select", "plan", "permute", "attend", "total"].map { "svg2 p\(mass) \($0)" }
    }

    private func group(
        _ name: String, densities: [Double], clusters: (queries: Int, keys: Int), masses: [Double], rounds: Int?,
        _ makeProblem: @escaping ((String) -> Void) throws -> VideoProblem
    ) -> CaseGroup {
        var group = CaseGroup(
            op: "video", name: name, amounts: .uncounted,
            labels: ["dense"] + densities.flatMap(Self.svgLabels) + masses.flatMap(Self.svg2Labels),
            otherOps: ["video.dense", "video.svg", "video.svg2"]
        ) { announce in
            let problem = try makeProblem(announce)
            let dense = try DenseAttention(problem.shape, modifiers: problem.modifiers, instructionSet: instructionSet)
            var variants = [problem.attention(dense, pairs: dense.visiblePairs, op: "video.dense", label: "dense")]
            for density in densities { variants += try svg(problem, density: density) }
            for mass in masses { variants += try svg2(problem, mass: mass, clusters: clusters, announce: announce) }
            for index in variants.indices.dropFirst() { variants[index].baseline = (0, BenchmarkRow.denseBaseline) }
            return variants
        }
        group.rounds = rounds
        return group
    }

    /// The rows of spatial and temporal heads.
    private func svg(_ problem: VideoProblem, density: Double) throws -> [Variant] {
        let (query, key, value, pool) = (problem.query, problem.key, problem.value, pool)
        let svg = try SVGAttention(
            problem.shape, geometry: problem.geometry, SVGConfiguration(density: density, modifiers: problem.modifiers),
            instructionSet: instructionSet)
        let selected = try svg.select(query: query.view(), key: key.view(), value: value.view(), on: pool)
        let plan = try svg.attention(over: selected)
        let state = try plan(query: query, key: key, value: value, on: pool)
        let places = plan.query?.inverse
        let labels = Self.svgLabels(density)
        return try [
            problem.stage("video.svg", labels[0]) {
                let (q, k, v) = try! (query.view(), key.view(), value.view())
                _ = try! svg.select(query: q, key: k, value: v, on: pool)
            },
            problem.stage("video.svg", labels[1], Self.moving(plan, problem, pool)),
            problem.attention(plan, pairs: plan.attention.visiblePairs, op: "video.svg", label: labels[2]) { head, i, j in
                func place(_ token: Int) -> Int { places.map { Int($0.order(head: head)[offset: token]) } ?? token }
                return svg.masks[selected.patterns[head].rawValue].keeps(query: place(i), key: place(j))
            },
            problem.total("video.svg", labels[3], density: plan.density, state) {
                let (q, k, v) = try! (query.view(), key.view(), value.view())
                let chosen = try! svg.select(query: q, key: k, value: v, on: pool)
                problem.output.compute(try! svg.attention(over: chosen), query, key, value, on: pool)
            },
        ]
    }

    /// The rows of semantic clusters, which start from those of the step before.
    private func svg2(
        _ problem: VideoProblem, mass: Double, clusters: (queries: Int, keys: Int), announce: (String) -> Void
    ) throws -> [Variant] {
        let (query, key, value, pool) = (problem.query, problem.key, problem.value, pool)
        let svg2 = try SVG2Attention(
            problem.shape, geometry: problem.geometry,
            SVG2Configuration(
                queryClusters: clusters.queries, keyClusters: clusters.keys, mass: mass, initialIterations: 20,
                modifiers: problem.modifiers), instructionSet: instructionSet)
        announce("clusters of the first step")
        var state = SVG2State()
        try svg2.track(query: query.view(), key: key.view(), in: &state, on: pool)
        let warm = state
        let selected = try svg2.select(query: query.view(), key: key.view(), continuing: &state, on: pool)
        let plan = try svg2.attention(over: selected)
        let attended = try plan(query: query, key: key, value: value, on: pool)
        let places = (selected.queryOrder.inverse, selected.keyOrder.inverse)
        let group = problem.shape.queryHeadsPerKVHead
        let labels = Self.svg2Labels(mass)
        return try [
            problem.stage("video.svg2", labels[0]) {
                var state = warm
                let (q, k) = try! (query.view(), key.view())
                try! svg2.track(query: q, key: k, in: &state, on: pool)
            },
            problem.stage("video.svg2", labels[1]) {
                _ = try! svg2.select(query: selected.query, key: selected.key, on: pool)
            },
            problem.stage("video.svg2", labels[2]) { _ = try! svg2.attention(over: selected) },
            problem.stage("video.svg2", labels[3], Self.moving(plan, problem, pool)),
            problem.attention(plan, pairs: plan.attention.visiblePairs, op: "video.svg2", label: labels[4]) { head, i, j in
                let mask = selected.masks[head]
                let queryPlace = Int(places.0.order(head: head)[offset: i])
                let keyPlace = Int(places.1.order(head: head / group)[offset: j])
                return mask[0, mask.grid.query.block(of: queryPlace), mask.grid.key.block(of: keyPlace)]
            },
            problem.total("video.svg2", labels[5], density: selected.density, attended) {
                var state = warm
                let (q, k) = try! (query.view(), key.view())
                let chosen = try! svg2.select(query: q, key: k, continuing: &state, on: pool)
                problem.output.compute(try! svg2.attention(over: chosen), query, key, value, on: pool)
            },
        ]
    }

    /// What a permuted plan costs beside attention: a plan with the same orders that attends to nothing.
    private static func moving(_ plan: PermutedAttention, _ problem: VideoProblem, _ pool: WorkerPool) throws -> () -> Void {
        let nothing = try BlockMask(grid: BlockGrid(problem.shape, isCausal: false)) { _, _, _ in false }
        let empty = try PermutedAttention(
            BlockSparseAttention(problem.shape, mask: nothing, instructionSet: plan.attention.instructionSet),
            query: plan.query, key: plan.key)
        return { problem.output.compute(empty, problem.query, problem.key, problem.value, on: pool) }
    }

    /// The assignment step of k-means.
    private func assignment(points: Int, channels: Int, clusters: Int) -> CaseGroup {
        let flop = 2 * Double(points) * Double(clusters) * Double(channels)
        return CaseGroup(
            op: "video.kmeans", name: "assign N \(points) d \(channels) k \(clusters)",
            amounts: .operations(flop, effective: flop)
        ) { _ in
            let data = try Tensor<Float>.normal([1, points, channels], seed: 1)
            return try instructionSets.flatMap { set in
                let kMeans = try KMeans(points: points, channels: channels, clusters: clusters, instructionSet: set)
                let centroids = try kMeans.initialCentroids(of: data, seed: 2)
                return pools.map { pool in
                    Variant(
                        isa: set.name, threads: pool.threads,
                        body: {
                            let view = try! data.view()
                            _ = try! kMeans.assign(view, to: centroids, on: pool)
                        },
                        verify: { try Self.verify(kMeans, data, centroids, pool) },
                        roof: { MachineRoofs.multiplyAdd(instructionSet: set, on: pool, duration: .zero) })
                }
            }
        }
    }

    /// Sampled points must have a centroid that is nearest, within rounding, by the oracle.
    private static func verify(
        _ kMeans: KMeans, _ data: Tensor<Float>, _ centroids: Tensor<Float>, _ pool: WorkerPool
    ) throws -> Verification {
        let clusters = try kMeans.assign(data.view(), to: centroids, on: pool)
        func rows(_ tensor: Tensor<Float>, _ row: Int) -> [Double] {
            (0..<kMeans.channels).map { Double(tensor[flat: row * kMeans.channels + $0]) }
        }
        let centres = (0..<kMeans.clusters).map { rows(centroids, $0) }
        var verification = Verification.none
        for point in stride(from: 0, to: kMeans.points, by: max(1, kMeans.points / 100)) {
            let reference = ReferenceKMeans(points: [rows(data, point)])
            let nearest = reference.distance(0, to: centres[reference.labels(centres)[0]])
            let actual = reference.distance(0, to: centres[Int(clusters.labels[flat: point])])
            // Norms and products are sums of d terms of magnitude up to the distance and norms.
            verification.add(
                error: actual - nearest, bound: 12 * 0x1p-24 * Double(kMeans.channels).squareRoot() * (nearest + 1))
        }
        return verification
    }

    /// Attention over random blocks of the sizes that clusters have.
    private func variableBlocks(tokens: Int, headDim: Int) -> CaseGroup {
        var group = CaseGroup(
            op: "video.blocks", name: "blocks of 500×100, N \(tokens) d \(headDim)", amounts: .uncounted,
            labels: ["dense", "sparse"]
        ) { announce in
            var generator = SplitMix64(seed: 5)
            func sizes(mean: Int) -> [Int] {
                var (sizes, rest) = ([Int](), tokens)
                while rest > 0 {
                    sizes.append(min(rest, Int.random(in: 0...2 * mean, using: &generator)))
                    rest -= sizes.last!
                }
                return sizes
            }
            let grid = try BlockGrid(
                query: BlockPartition(sizes: sizes(mean: 500)), key: BlockPartition(sizes: sizes(mean: 100)), isCausal: false)
            let mask = try BlockMask(grid: grid) { _, _, _ in generator.uniform() < 0.25 }
            announce("making the operands")
            let problem = try VideoProblem(
                name: "", geometry: VideoGeometry(frames: 33, tokensPerFrame: tokens / 33), headDim: headDim,
                set: instructionSet, pool: pool, announce: announce)
            let dense = try DenseAttention(problem.shape, instructionSet: instructionSet)
            let plan = try BlockSparseAttention(problem.shape, mask: mask, instructionSet: instructionSet)
            var sparse = problem.attention(plan, pairs: plan.visiblePairs, op: "video.blocks", label: "sparse") { _, i, j in
                mask[0, grid.query.block(of: i), grid.key.block(of: j)]
            }
            sparse.baseline = (0, BenchmarkRow.denseBaseline)
            sparse.metrics = [.density: plan.density]
            return [problem.attention(dense, pairs: dense.visiblePairs, op: "video.blocks", label: "dense"), sparse]
        }
        group.rounds = 3
        return group
    }
}

extension ArraySlice {
    fileprivate subscript(offset offset: Int) -> Element { self[startIndex + offset] }
}
