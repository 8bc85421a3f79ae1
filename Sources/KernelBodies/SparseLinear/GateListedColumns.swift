// Compact rows times listed columns of wide ones: y[:, t] = gate[:, columns[t]] · y[:, t], and 0 where the gate is 0.
//
// The gate of a token that lacks a channel of the union is 0. What it meets is chosen away and not multiplied, since 0 · ∞ is NaN.

public import KernelInterface

extension Kernels {
    public static func gateListedColumns(_ arguments: UnsafePointer<GateColumnsArguments>) {
        let args = arguments.pointee
        for row in 0..<args.rows {
            let gate = args.gate + row * args.gateStride
            let y = args.y + row * args.yStride
            for t in 0..<args.count {
                let factor = gate[Int(args.columns[t])]
                y[t] = factor == 0 ? 0 : factor * y[t]
            }
        }
    }
}
