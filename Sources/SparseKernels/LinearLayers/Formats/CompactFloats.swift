internal import KernelInterface

/// Numbers in the narrowest type that holds each of them exactly: half precision, else bfloat16, else single precision.
///
/// Scales and factors that were rounded to 16 bits when a layer was quantised again take two bytes when it is loaded.
struct CompactFloats: Sendable {
    let type: StorageType
    private let storage: TensorStorage

    var pointer: UnsafeRawPointer { UnsafeRawPointer(storage.pointer) }
    var byteCount: Int { storage.byteCount }

    /// Stores `count` numbers that `fill` writes. `count` must be a multiple of the level's `laneCount`.
    init(count: Int, kernels: any KernelTable.Type, fill: (UnsafeMutablePointer<Float>) -> Void) {
        let wide = TensorStorage(byteCount: count * 4)
        let floats = wide.pointer.assumingMemoryBound(to: Float.self)
        fill(floats)
        let narrow = TensorStorage(byteCount: count * 2)
        let back = TensorStorage(byteCount: count * 4)
        for (type, narrowing, widening) in [
            (StorageType.float16, Primitive.narrowToHalf, Primitive.widenHalf),
            (.bfloat16, .narrowToBFloat16, .widenBFloat16),
        ] {
            kernels.applyPrimitive(narrowing, from: floats, to: narrow.pointer, count: count)
            kernels.applyPrimitive(widening, from: narrow.pointer, to: back.pointer, count: count)
            let result = back.pointer.assumingMemoryBound(to: Float.self)
            if (0..<count).allSatisfy({ floats[$0] == result[$0] }) {
                self.type = type
                storage = narrow
                return
            }
        }
        type = .float32
        storage = wide
    }
}
