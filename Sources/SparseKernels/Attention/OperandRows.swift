internal import KernelInterface

/// Rows of an operand, widened to floats. Operators of façades read them, which have no access to the memory of views.
///
/// Holds the address of the operand, which must outlive it.
package struct OperandRows {
    private let operand: AttentionOperand
    private let kernels: any KernelTable.Type

    package init<Element: AttentionElement>(_ view: TensorView<Element>, instructionSet: InstructionSet) {
        operand = AttentionOperand(view)
        kernels = instructionSet.kernels
    }

    package var geometry: TensorGeometry { operand.geometry }

    /// The address of a row of floats.
    package func floats(head: Int, token: Int) -> UnsafePointer<Float> {
        precondition(operand.type == .float32, "the elements are not floats")
        return operand.rows(head: head, from: token).base.assumingMemoryBound(to: Float.self)
    }

    /// Copies `count` rows, `step` tokens apart, to adjacent rows of floats.
    package func stage(head: Int, first: Int, step: Int = 1, count: Int, into rows: UnsafeMutablePointer<Float>) {
        if count == 0 || geometry.channels == 0 { return }
        var source = operand.rows(head: head, from: first)
        source.stride *= step
        kernels.stageRows(source, first: 0, count: count, channels: geometry.channels, into: rows)
    }

    /// values[i] = e^values[i] for i < count, with the accuracy of the kernels (see the table of tolerances in Testing.md).
    ///
    /// The memory must have room for `padded(count)` values, all of them initialised.
    package func exponentiate(_ values: UnsafeMutablePointer<Float>, count: Int) {
        kernels.applyPrimitive(.exp, from: values, to: values, count: Self.padded(count))
    }

    /// A count filled up to whole vectors of every level.
    package static func padded(_ count: Int) -> Int { (count + 15) / 16 * 16 }
}

/// Rows of an operand that a call writes: floats, rounded to the element type of the operand.
///
/// Holds the address of the operand, which must outlive it.
package struct OutputRows {
    private let operand: MutableAttentionOperand

    /// Takes the address of a view, which the caller still owns and may pass on.
    package init<Element: AttentionElement>(_ view: inout MutableTensorView<Element>) {
        operand = MutableAttentionOperand(addressing: &view)
    }

    package var geometry: TensorGeometry { operand.geometry }

    /// Whether the elements are floats, which `floats` may address.
    package var isSinglePrecision: Bool { operand.type == .float32 }

    /// The address of a row of floats.
    package func floats(head: Int, token: Int) -> UnsafeMutablePointer<Float> {
        precondition(isSinglePrecision, "the elements are not floats")
        return operand.row(head: head, token: token).assumingMemoryBound(to: Float.self)
    }

    /// Stores one row, rounded to nearest even.
    package func store(_ row: UnsafePointer<Float>, head: Int, token: Int) {
        let channels = geometry.channels
        let target = operand.row(head: head, token: token)
        switch operand.type {
        case .float32:
            target.assumingMemoryBound(to: Float.self).update(from: row, count: channels)
        case .float16:
            let target = target.assumingMemoryBound(to: UInt16.self)
            for channel in 0..<channels { target[channel] = halfBitPattern(row[channel]) }
        case .bfloat16:
            let target = target.assumingMemoryBound(to: BFloat16.self)
            for channel in 0..<channels { target[channel] = BFloat16(row[channel]) }
        }
    }
}
