// One output row from the partial states of its chunks (see AttendTokens.swift), merged in the order of their keys:
//
//     m = max mᵢ      O = Σ e^(mᵢ − m)·Oᵢ / Σ e^(mᵢ − m)·lᵢ      LSE = m + ln Σ e^(mᵢ − m)·lᵢ

public import KernelInterface

#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#elseif canImport(Darwin)
    import Darwin
#endif

extension Kernels {
    /// See `MergeTokensArguments`.
    public static func mergeTokens(_ arguments: UnsafePointer<MergeTokensArguments>) {
        let args = arguments.pointee
        let stride = TokenLayout.padded(args.valueDim)
        let sums = args.scratch
        for x in 0..<stride { sums[x] = 0 }
        var m = args.sinkLogit
        for i in 0..<args.count {
            let largest = args.records[Int(args.indices[i]) * args.recordStride + stride]
            // NaN in a row's scores must make its output NaN. This comparison keeps NaN.
            if !(largest <= m) { m = largest }
        }
        var isEmpty = args.sinkLogit == -.infinity
        var total = isEmpty ? 0 : Double(exp(splat(args.sinkLogit - m))[0])
        for i in 0..<args.count {
            let record = args.records + Int(args.indices[i]) * args.recordStride
            // A chunk of which the row sees nothing may hold 0·∞. With NaN scores m is −∞ as well, but the sum is NaN.
            if record[stride] == -.infinity && record[stride + 1] == 0 { continue }
            isEmpty = false
            let weight = exp(splat(record[stride] - m))
            total += Double(weight[0]) * Double(record[stride + 1])
            for x in 0..<stride / laneCount {
                let target = sums + x * laneCount
                store(multiplyAdd(weight, load(record + x * laneCount), load(target)), target)
            }
        }
        if let logSumExp = args.logSumExp {
            logSumExp.pointee = isEmpty ? -.infinity : Float(Double(m) + log(total))
        }
        let factor = splat(isEmpty ? 0 : Float(1 / total))
        for x in 0..<stride / laneCount { store(load(sums + x * laneCount) * factor, sums + x * laneCount) }
        switch args.outputType {
        case .float32:
            let output = args.output.assumingMemoryBound(to: Float.self)
            for channel in 0..<args.valueDim { output[channel] = sums[channel] }
        case .float16:
            let output = args.output.assumingMemoryBound(to: UInt16.self)
            for channel in 0..<args.valueDim { output[channel] = narrowToHalf(sums[channel]) }
        case .bfloat16:
            let output = args.output.assumingMemoryBound(to: UInt16.self)
            for channel in 0..<args.valueDim { output[channel] = narrowToBFloat16(sums[channel]) }
        }
    }
}
