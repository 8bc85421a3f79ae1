import SparseKernelsReference
import SparseKernelsTraining
import TestSupport
import Testing

@Suite("Adapters and gradients of linear layers")
struct LoRATests {
    /// Operands of one layer.
    struct Problem {
        let x, dy: Tensor<Float>
        let factors: LoRAFactors

        init(rows: Int, inFeatures: Int, outFeatures: Int, rank: Int, seed: UInt64 = 1) throws {
            x = try .normal([rows, inFeatures], seed: seed)
            dy = try .normal([rows, outFeatures], seed: seed + 1)
            factors = try LoRAFactors(
                a: .normal([rank, inFeatures], seed: seed + 2), b: .normal([outFeatures, rank], seed: seed + 3), scale: 1.75)
        }

        struct Result {
            var t, y, da, db, dx: Tensor<Float>
        }

        /// Runs both passes, on accumulators that begin with zeros.
        func run(_ set: InstructionSet? = nil, on pool: WorkerPool = .shared) throws -> Result {
            let plan = try LoRAOperator(
                inFeatures: factors.inFeatures, outFeatures: factors.outFeatures, rank: factors.rank, instructionSet: set)
            var result = Result(
                t: try Tensor(zeros: [x.shape[0] + 2, factors.rank]), y: try Tensor(zeros: dy.shape),
                da: try Tensor(zeros: factors.a.shape), db: try Tensor(zeros: factors.b.shape),
                dx: try Tensor(zeros: x.shape))
            try plan.run(x: x, factors: factors, projected: &result.t, adding: &result.y, on: pool)
            try plan.gradient(
                x: x, projected: result.t, factors: factors, outputGradient: dy, a: &result.da, b: &result.db,
                adding: &result.dx, on: pool)
            return result
        }
    }

    static let shapes: [(rows: Int, inFeatures: Int, outFeatures: Int, rank: Int)] = [
        (1, 1, 1, 1), (3, 7, 5, 2), (7, 17, 33, 8), (9, 48, 49, 16), (16, 47, 96, 32), (33, 129, 31, 33), (70, 65, 50, 3),
        (257, 100, 60, 8), (50, 300, 200, 48), (2, 40, 30, 70), (130, 33, 17, 20),
    ]

    @Test("the oracle's gradients are those of finite differences")
    func differences() throws {
        let problem = try Problem(rows: 4, inFeatures: 3, outFeatures: 5, rank: 2)
        let (x, dy, factors) = (problem.x, problem.dy, problem.factors)
        let oracle = ReferenceLoRA(x: x, a: factors.a, b: factors.b, scale: factors.scale)
        let d = ReferenceMatrix(dy)
        func loss(_ x: [Double], _ a: [Double], _ b: [Double]) -> Double {
            let t = ReferenceMatrix(rows: 4, columns: 3, x).times(ReferenceMatrix(rows: 2, columns: 3, a).transposed)
            let y = t.times(ReferenceMatrix(rows: 5, columns: 2, b).transposed).scaled(by: Double(factors.scale))
            return zip(y.elements, d.elements).reduce(0) { $0 + $1.0 * $1.1 }
        }
        let (vx, va, vb) = (oracle.x.elements, oracle.a.elements, oracle.b.elements)
        let cases = [
            ("dx", oracle.inputGradient(d), ReferenceGradients.differences(vx) { loss($0, va, vb) }),
            ("da", oracle.aGradient(d), ReferenceGradients.differences(va) { loss(vx, $0, vb) }),
            ("db", oracle.bGradient(d), ReferenceGradients.differences(vb) { loss(vx, va, $0) }),
        ]
        for (name, gradient, differences) in cases {
            TrainingSupport.expectNear(gradient.elements, differences, bound: { _ in 1e-7 }, name)
        }
    }

    @Test("both passes agree with the oracle", arguments: InstructionSet.available)
    func agree(_ set: InstructionSet) throws {
        for shape in Self.shapes {
            let problem = try Problem(
                rows: shape.rows, inFeatures: shape.inFeatures, outFeatures: shape.outFeatures, rank: shape.rank)
            let factors = problem.factors
            let oracle = ReferenceLoRA(x: problem.x, a: factors.a, b: factors.b, scale: factors.scale)
            let dy = ReferenceMatrix(problem.dy)
            let result = try problem.run(set)
            let label = "\(set), \(shape)"
            let (rows, rank) = (shape.rows, shape.rank)
            let t = try Tensor<Float>([rows, rank]) { result.t[flat: $0] }
            TrainingSupport.expectNear(t, oracle.projected, depth: shape.inFeatures, label + ", t")
            TrainingSupport.expectNear(result.y, oracle.output, depth: shape.inFeatures + rank, label + ", y")
            let back = shape.outFeatures
            TrainingSupport.expectNear(result.da, oracle.aGradient(dy), depth: back + rows, label + ", da")
            TrainingSupport.expectNear(
                result.db, oracle.bGradient(dy), depth: shape.inFeatures + rows, label + ", db")
            TrainingSupport.expectNear(result.dx, oracle.inputGradient(dy), depth: back + rank, label + ", dx")
        }
    }

    @Test("outputs are added to, rows may have strides, and the gradient of x may be left out")
    func accumulation() throws {
        for set in InstructionSet.available {
            let problem = try Problem(rows: 37, inFeatures: 50, outFeatures: 61, rank: 9)
            let plain = try problem.run(set)
            let plan = try LoRAOperator(inFeatures: 50, outFeatures: 61, rank: 9, instructionSet: set)
            func strided(_ tensor: Tensor<Float>) throws -> Tensor<Float> {
                let columns = tensor.shape[1]
                return try Tensor([37, columns + 5]) { index in
                    let (row, column) = (index / (columns + 5), index % (columns + 5))
                    return column < columns ? tensor[row, column] : .nan
                }
            }
            let (x, dy) = (try strided(problem.x), try strided(problem.dy))
            var y = try Tensor<Float>([37, 70]) { _ in 3 }
            var dx = try Tensor<Float>([37, 53]) { _ in 2 }
            var t = try Tensor<Float>(zeros: [37, 9])
            var (da, db) = (try Tensor<Float>([9, 50]) { _ in 1 }, try Tensor<Float>([61, 9]) { _ in 1 })
            do {
                let target = try MutableMatrixView(y.mutableSpan, rows: 37, columns: 61, rowStride: 70)
                try plan.run(
                    x: x.matrixView().columns(0..<50), factors: problem.factors, projected: &t, adding: target)
                let back = try MutableMatrixView(dx.mutableSpan, rows: 37, columns: 50, rowStride: 53)
                try plan.gradient(
                    x: x.matrixView().columns(0..<50), projected: t, factors: problem.factors,
                    outputGradient: dy.matrixView().columns(0..<61), a: &da, b: &db, adding: back)
            }
            func expectSum(_ actual: Float, _ start: Float, _ product: Float) -> Bool {
                abs(actual - (start + product)) <= 1e-5 * (abs(start) + abs(product))
            }
            for row in 0..<37 {
                #expect((0..<61).allSatisfy { expectSum(y[row, $0], 3, plain.y[row, $0]) }, "\(set)")
                #expect((61..<70).allSatisfy { y[row, $0] == 3 } && (50..<53).allSatisfy { dx[row, $0] == 2 })
                #expect((0..<50).allSatisfy { expectSum(dx[row, $0], 2, plain.dx[row, $0]) }, "\(set)")
            }
            #expect((0..<450).allSatisfy { expectSum(da[flat: $0], 1, plain.da[flat: $0]) }, "\(set)")
            #expect((0..<549).allSatisfy { expectSum(db[flat: $0], 1, plain.db[flat: $0]) }, "\(set)")
            var (a, b) = (try Tensor<Float>(zeros: [9, 50]), try Tensor<Float>(zeros: [61, 9]))
            try plan.gradient(
                x: problem.x.matrixView(), projected: t, factors: problem.factors,
                outputGradient: problem.dy.matrixView(), a: &a, b: &b)
            #expect(a.bits == plain.da.bits && b.bits == plain.db.bits)
        }
    }

    @Test("threads do not change bits, NaN stays in its row", arguments: InstructionSet.available)
    func threads(_ set: InstructionSet) throws {
        let problem = try Problem(rows: 700, inFeatures: 210, outFeatures: 190, rank: 24)
        let first = try problem.run(set, on: .serial)
        for threads in [2, 7] {
            let other = try problem.run(set, on: WorkerPool(threads: threads))
            #expect(other.t.bits == first.t.bits && other.y.bits == first.y.bits && other.dx.bits == first.dx.bits)
            #expect(other.da.bits == first.da.bits && other.db.bits == first.db.bits, "\(set), \(threads) threads")
        }
        var x = problem.x
        x[3, 5] = .nan
        let plan = try LoRAOperator(inFeatures: 210, outFeatures: 190, rank: 24, instructionSet: set)
        var (t, y) = (try Tensor<Float>(zeros: [700, 24]), try Tensor<Float>(zeros: [700, 190]))
        try plan.run(x: x, factors: problem.factors, projected: &t, adding: &y)
        #expect((0..<190).allSatisfy { y[3, $0].isNaN })
        #expect((0..<700).allSatisfy { row in row == 3 || (0..<190).allSatisfy { y[row, $0] == first.y[row, $0] } })
    }

    @Test("new factors are those of PEFT: bounded, seeded, and without effect")
    func factors() throws {
        let factors = try LoRAFactors(inFeatures: 400, outFeatures: 30, rank: 16, alpha: 32, seed: 5)
        #expect(factors.scale == 2 && factors.rank == 16 && factors.inFeatures == 400 && factors.outFeatures == 30)
        let a = factors.a.elements
        #expect(a.allSatisfy { abs($0) <= 0.05 } && factors.b.elements.allSatisfy { $0 == 0 })
        // A uniform distribution within ±0.05 has a mean of 0 and a deviation of 0.05/√3.
        let mean = a.reduce(0, +) / 6400
        let deviation = (a.reduce(0) { $0 + $1 * $1 } / 6400).squareRoot()
        #expect(abs(mean) < 0.0015 && abs(deviation - 0.05 / Float(3).squareRoot()) < 0.001)
        let same = try LoRAFactors(inFeatures: 400, outFeatures: 30, rank: 16, alpha: 32, seed: 5)
        let other = try LoRAFactors(inFeatures: 400, outFeatures: 30, rank: 16, alpha: 32, seed: 6)
        #expect(same.a == factors.a && other.a != factors.a)
    }

    @Test("the gradients of weight and bias agree with the oracle", arguments: InstructionSet.available)
    func linear(_ set: InstructionSet) throws {
        for (rows, inFeatures, outFeatures) in [(1, 1, 1), (7, 17, 33), (50, 130, 47), (300, 33, 20), (20, 390, 400)] {
            let x = try Tensor<Float>.normal([rows, inFeatures], seed: 1)
            let dy = try Tensor<Float>.normal([rows, outFeatures], seed: 2)
            let plan = try LinearGradient(inFeatures: inFeatures, outFeatures: outFeatures, instructionSet: set)
            func run(_ threads: Int) throws -> (Tensor<Float>, Tensor<Float>) {
                var dW = try Tensor<Float>(zeros: [outFeatures, inFeatures])
                var db = try Tensor<Float>(zeros: [outFeatures])
                try plan.run(x: x, outputGradient: dy, weight: &dW, bias: &db, on: WorkerPool(threads: threads))
                return (dW, db)
            }
            let (dW, db) = try run(1)
            let label = "\(set), \(rows) × \(inFeatures) × \(outFeatures)"
            let transposed = ReferenceMatrix(dy).transposed
            TrainingSupport.expectNear(dW, transposed.times(ReferenceMatrix(x)), depth: rows, label + ", dW")
            let ones = ReferenceMatrix(rows: rows, columns: 1, [Double](repeating: 1, count: rows))
            TrainingSupport.expectNear(db, transposed.times(ones), depth: rows, label + ", db")
            for threads in [2, 7] {
                let other = try run(threads)
                #expect(other.0.bits == dW.bits && other.1.bits == db.bits, "\(label), \(threads) threads")
            }
            // It is added to what is there.
            var twice = dW
            try plan.run(x: x, outputGradient: dy, weight: &twice)
            #expect(zip(twice.elements, dW.elements).allSatisfy { abs($0 - 2 * $1) <= 1e-5 * abs($1) + 1e-5 })
        }
    }

    @Test("no rows, no features")
    func empty() throws {
        for (rows, inFeatures, outFeatures) in [(0, 5, 6), (3, 0, 6), (3, 5, 0), (0, 0, 0)] {
            let problem = try Problem(rows: rows, inFeatures: inFeatures, outFeatures: outFeatures, rank: 2)
            let result = try problem.run()
            #expect(result.y.elements.allSatisfy { $0.isFinite })
            var dW = try Tensor<Float>(zeros: [outFeatures, inFeatures])
            var db = try Tensor<Float>(zeros: [outFeatures])
            try LinearGradient(inFeatures: inFeatures, outFeatures: outFeatures).run(
                x: problem.x, outputGradient: problem.dy, weight: &dW, bias: &db)
        }
    }

    @Test("errors name the operand and both numbers")
    func errors() throws {
        func tensor(_ shape: Int...) throws -> Tensor<Float> { try Tensor(zeros: shape) }
        expectError(.invalidShape, "a", containing: "[0, 4]") {
            _ = try LoRAFactors(a: tensor(0, 4), b: tensor(3, 0), scale: 1)
        }
        expectError(.invalidShape, "b", containing: "2", "[3, 4]") {
            _ = try LoRAFactors(a: tensor(2, 5), b: tensor(3, 4), scale: 1)
        }
        expectError(.invalidArgument, "scale", containing: "nan") {
            _ = try LoRAFactors(a: tensor(2, 5), b: tensor(3, 2), scale: .nan)
        }
        expectError(.invalidShape, "rank", containing: "0") {
            _ = try LoRAFactors(inFeatures: 4, outFeatures: 4, rank: 0, alpha: 1, seed: 0)
        }
        expectError(.invalidShape, "inFeatures", containing: "-1") {
            _ = try LoRAOperator(inFeatures: -1, outFeatures: 4, rank: 1)
        }
        let plan = try LoRAOperator(inFeatures: 5, outFeatures: 3, rank: 2)
        let factors = try LoRAFactors(a: tensor(2, 5), b: tensor(3, 2), scale: 1)
        var (t, y) = (try tensor(4, 2), try tensor(4, 3))
        expectError(.invalidShape, "x", containing: "5", "6") {
            try plan.run(x: tensor(4, 6), factors: factors, projected: &t, adding: &y)
        }
        expectError(.invalidShape, "y", containing: "3 × 3", "4 × 3") {
            try plan.run(x: tensor(3, 5), factors: factors, projected: &t, adding: &y)
        }
        t = try tensor(3, 2)
        expectError(.invalidShape, "projected", containing: "[4 or more, 2]", "[3, 2]") {
            try plan.run(x: tensor(4, 5), factors: factors, projected: &t, adding: &y)
        }
        let wide = try LoRAFactors(a: tensor(1, 5), b: tensor(3, 1), scale: 1)
        t = try tensor(4, 2)
        expectError(.invalidShape, "factors.a", containing: "[2, 5]", "[1, 5]") {
            try plan.run(x: tensor(4, 5), factors: wide, projected: &t, adding: &y)
        }
        var (da, db, dx) = (try tensor(2, 4), try tensor(3, 2), try tensor(4, 5))
        func gradient() throws {
            try plan.gradient(
                x: tensor(4, 5), projected: t, factors: factors, outputGradient: y, a: &da, b: &db, adding: &dx)
        }
        expectError(.invalidShape, "a", containing: "[2, 5]", "[2, 4]") { try gradient() }
        (da, db) = (try tensor(2, 5), try tensor(2, 3))
        expectError(.invalidShape, "b", containing: "[3, 2]", "[2, 3]") { try gradient() }
        (db, dx) = (try tensor(3, 2), try tensor(4, 6))
        expectError(.invalidShape, "dx", containing: "4 × 5", "4 × 6") { try gradient() }
        let linear = try LinearGradient(inFeatures: 5, outFeatures: 3)
        expectError(.invalidShape, "weight", containing: "[3, 5]", "[2, 5]") {
            try linear.run(x: tensor(4, 5), outputGradient: y, weight: &da)
        }
    }
}
