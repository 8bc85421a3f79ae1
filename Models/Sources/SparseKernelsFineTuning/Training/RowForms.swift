import SparseKernels
import SparseKernelsTraining
import SparseLoRA

// Forms of operators for the first rows of tensors. Views of two parts of one struct cannot be made in one call, but the parts can be passed.

extension RMSNorm {
    func run(
        _ x: Tensor<Float>, rows: Int, into y: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try run(
            MatrixView(x.span, rows: rows, columns: channels, named: "x"),
            into: MutableMatrixView(y.mutableSpan, rows: rows, columns: channels, named: "y"), on: pool)
    }

    func run(
        adding x: Tensor<Float>, to residual: inout Tensor<Float>, rows: Int, into y: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try run(
            adding: MatrixView(x.span, rows: rows, columns: channels, named: "x"),
            to: MutableMatrixView(residual.mutableSpan, rows: rows, columns: channels, named: "residual"),
            into: MutableMatrixView(y.mutableSpan, rows: rows, columns: channels, named: "y"), on: pool)
    }
}

extension RMSNormGradient {
    func run(
        _ outputGradient: Tensor<Float>, x: Tensor<Float>, rows: Int, width: Int, into dx: inout Tensor<Float>,
        accumulates: Bool,
        on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try run(
            x: MatrixView(x.span, rows: rows, columns: width, named: "x"),
            outputGradient: MatrixView(outputGradient.span, rows: rows, columns: width, named: "outputGradient"),
            inputGradient: MutableMatrixView(dx.mutableSpan, rows: rows, columns: width, named: "inputGradient"),
            accumulates: accumulates, on: pool)
    }
}

extension SparseProjection {
    func run(
        _ x: Tensor<Float>, rows: Int, split: TokenSplit?, channels: ChannelSubset?, lora: LoRAFactors?, tape: inout Tape,
        workspace: inout SparseLoRAWorkspace, into y: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try run(
            x: MatrixView(x.span, rows: rows, columns: inFeatures, named: "x"), split: split, channels: channels, lora: lora,
            tape: &tape,
            workspace: &workspace, y: MutableMatrixView(y.mutableSpan, rows: rows, columns: outFeatures, named: "y"), on: pool)
    }
}

extension SparseMLP {
    func run(
        _ x: Tensor<Float>, rows: Int, split: TokenSplit?, channels: ChannelSubset?, tape: inout Tape,
        workspace: inout SparseLoRAWorkspace, into y: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try run(
            x: MatrixView(x.span, rows: rows, columns: width, named: "x"), split: split, channels: channels, tape: &tape,
            workspace: &workspace,
            y: MutableMatrixView(y.mutableSpan, rows: rows, columns: width, named: "y"), on: pool)
    }

    func gradient(
        _ dy: Tensor<Float>, rows: Int, tape: Tape, workspace: inout SparseLoRAWorkspace, into dx: inout Tensor<Float>,
        on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try gradient(
            MatrixView(dy.span, rows: rows, columns: width, named: "dy"), tape: tape, workspace: &workspace,
            dx: MutableMatrixView(dx.mutableSpan, rows: rows, columns: width, named: "dx"), on: pool)
    }
}

extension SparseLinear {
    func run(
        _ x: Tensor<Float>, rows: Int, into y: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try run(
            x: MatrixView(x.span, rows: rows, columns: inFeatures, named: "x"),
            y: MutableMatrixView(y.mutableSpan, rows: rows, columns: outFeatures, named: "y"), on: pool)
    }

    func inputGradient(
        _ dy: Tensor<Float>, rows: Int, into dx: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) {
        try inputGradient(
            MatrixView(dy.span, rows: rows, columns: outFeatures, named: "dy"),
            into: MutableMatrixView(dx.mutableSpan, rows: rows, columns: inFeatures, named: "dx"), on: pool)
    }
}

extension CrossEntropy {
    func run(
        _ logits: Tensor<Float>, targets: [Int], divisor: Double, gradient: inout Tensor<Float>, on pool: WorkerPool
    ) throws(SparseKernelsError) -> Loss {
        try run(
            MatrixView(logits.span, rows: targets.count, columns: vocabulary, named: "logits"), targets: targets,
            divisor: divisor,
            gradient: MutableMatrixView(gradient.mutableSpan, rows: targets.count, columns: vocabulary, named: "gradient"),
            on: pool)
    }
}
