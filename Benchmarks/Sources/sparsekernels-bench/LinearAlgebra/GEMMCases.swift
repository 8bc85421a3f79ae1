import BenchmarkReport
import SparseKernels
import SparseKernelsReference

/// The matrix product: the register tile alone and whole products, compared with OpenBLAS.
struct GEMMCases: CaseFamily {
    let run: RunContext

    func section() -> Section {
        var groups: [CaseGroup] = []
        for set in instructionSets { groups.append(tile(set)) }
        for size in isQuick ? [1024] : [512, 1024, 2048] {
            groups.append(product(m: size, n: size, k: size, transposesB: false))
            if !isQuick { groups.append(product(m: size, n: size, k: size, transposesB: true)) }
        }
        if !isQuick {
            groups.append(product(m: 4096, n: 3072, k: 3072, transposesB: true))
            groups.append(product(m: 4096, n: 4096, k: 4096, transposesB: false))
            groups += [8, 512].map { product(m: $0, n: 512, k: 1408, transposesB: true) }
        }
        for (n, k) in isQuick ? [(3072, 3072)] : [(512, 1408), (1024, 1024), (3072, 3072), (4096, 4096), (4096, 14336)] {
            groups.append(product(m: 1, n: n, k: k, transposesB: true))
        }
        return Section(
            kind: .matrixProduct, groups: groups, baselines: openBLAS.name.map { [$0] } ?? [], otherISAs: ["openblas"],
            remark: openBLAS.titleRemark)
    }

    /// A packed tile, 256 deep, on one thread. OpenBLAS has no interface for its micro-kernel, so it is represented by the rate
    /// of a whole product of 1024³, where packing is amortised.
    private func tile(_ set: InstructionSet) -> CaseGroup {
        let size = 1024
        let flop = 2 * Double(size * size * size)
        return CaseGroup(op: "gemm.tile", name: "tile, 256 deep", amounts: .operations(flop, effective: flop)) { _ in
            let operands = try GEMMOperands(m: size, n: size, k: size, transposesB: false)
            var variants = [
                Variant(
                    isa: set.name, threads: 1,
                    body: { MachineRoofs.multiplyTile(instructionSet: set, depth: 256, flop: flop) },
                    // Repeating one tile has no result to check; the products below check it.
                    verify: { nil }, roof: { MachineRoofs.multiplyAdd(instructionSet: set, on: .serial, duration: .zero) })
            ]
            if openBLAS.isAvailable {
                variants[0].baseline = openBLAS.name.map { (1, $0) }
                variants.append(openBLASRow(operands, threads: 1))
            }
            return variants
        }
    }

    /// One row is bound by memory and not by arithmetic: its rate of weights is compared with OpenBLAS's `gemv`, without a
    /// roof.
    private func product(m: Int, n: Int, k: Int, transposesB: Bool) -> CaseGroup {
        let flop = 2 * Double(m * n * k)
        let shape = m == n && n == k ? "\(m)³" : "\(m)×\(n)×\(k)"
        return CaseGroup(
            op: "gemm", name: "\(shape)\(transposesB ? " A·Bᵀ" : " A·B")",
            amounts: .operations(flop, effective: flop)
        ) { _ in
            let operands = try GEMMOperands(m: m, n: n, k: k, transposesB: transposesB)
            var variants: [Variant] = []
            for pool in pools {
                let first = variants.count
                for set in instructionSets {
                    let plan = try GEMM(m: m, n: n, k: k, transposesB: transposesB, instructionSet: set)
                    let body = { operands.compute(plan, on: pool) }
                    variants.append(
                        Variant(
                            isa: set.name, threads: pool.threads, body: body,
                            verify: {
                                body()
                                return operands.check()
                            },
                            baseline: openBLAS.name.map { (first + instructionSets.count, $0) },
                            roof: m == 1 ? nil : { MachineRoofs.multiplyAdd(instructionSet: set, on: pool, duration: .zero) }))
                    if m == 1 {
                        variants[variants.count - 1].amounts = [
                            .actualGFLOPS: flop, .effectiveGFLOPS: flop, .weightRate: Double(n * k * 4),
                        ]
                    }
                }
                if openBLAS.isAvailable { variants.append(openBLASRow(operands, threads: pool.threads)) }
            }
            return variants
        }
    }

    private func openBLASRow(_ operands: GEMMOperands, threads: Int) -> Variant {
        let body = { operands.computeWithOpenBLAS(threads: threads) }
        return Variant(
            isa: "openblas", threads: threads, body: body,
            verify: {
                body()
                return operands.check()
            }, restsAfterwards: true)
    }
}

/// A, B and C of one product, with sampled elements of the exact result.
final class GEMMOperands {
    private let a: Tensor<Float>
    private let b: Tensor<Float>
    private var c: Tensor<Float>
    private let transposesB: Bool
    private let samples: [(row: Int, column: Int, value: Double, bound: Double)]

    init(m: Int, n: Int, k: Int, transposesB: Bool) throws {
        let a = try Tensor<Float>.normal([m, k], seed: 1)
        let b = try Tensor<Float>.normal(transposesB ? [n, k] : [k, n], seed: 2)
        c = try Tensor(zeros: [m, n])
        var generator = SplitMix64(seed: 3)
        samples = (0..<64).map { _ in
            let (row, column) = (Int.random(in: 0..<m, using: &generator), Int.random(in: 0..<n, using: &generator))
            let exact = ReferenceMatrixProduct.element(
                row: row, column: column, depth: k, a: { a[flat: $0 * k + $1] },
                b: { transposesB ? b[flat: $1 * k + $0] : b[flat: $0 * n + $1] })
            return (row, column, exact.value, ReferenceMatrixProduct.errorBound(magnitude: exact.magnitude, depth: k))
        }
        self.a = a
        self.b = b
        self.transposesB = transposesB
    }

    // Shapes agree by construction, so neither product can throw.

    func compute(_ plan: GEMM, on pool: WorkerPool) { try! plan.run(a: a, b: b, into: &c, on: pool) }

    func computeWithOpenBLAS(threads: Int) {
        Self.multiply(a, b, &c, transposesB: transposesB, threads: threads)
    }

    private static func multiply(
        _ a: Tensor<Float>, _ b: Tensor<Float>, _ c: inout Tensor<Float>, transposesB: Bool, threads: Int
    ) {
        if a.shape[0] == 1 && transposesB {
            // For one row OpenBLAS's product of a matrix and a vector, which reads B once.
            var y = c.mutableSpan
            return try! OpenBLAS.multiplyVector(a: b.matrixView(), x: a.span, y: &y, threads: threads)
        }
        try! OpenBLAS.multiply(
            a: a.matrixView(), b: b.matrixView(), c: c.mutableMatrixView(), transposesB: transposesB, threads: threads)
    }

    func check() -> Verification {
        var verification = Verification.none
        for sample in samples {
            let actual = Double(c[flat: sample.row * c.shape[1] + sample.column])
            verification.add(error: abs(actual - sample.value), bound: sample.bound)
        }
        return verification
    }
}
