internal import KernelInterface

// The border between views and raw pointers. Pointers taken here are used only until the `run` call that took them returns.
// That call borrows or owns the views all the while, and geometry was checked against the memory when the views were made.

extension AttentionElement {
    /// The element type as kernels name it.
    static var storageType: StorageType {
        switch elementType {
        case .float32: .float32
        case .float16: .float16
        case .bfloat16: .bfloat16
        // Cached tokens are staged, as 16-bit rows are. See `RowOperand.pages`.
        case CachedElement.elementType: .float16
        default: preconditionFailure("\(elementType) is not an attention element type")
        }
    }
}

extension StorageType {
    /// Bytes of one element.
    var byteCount: Int { self == .float32 ? 4 : 2 }
}

/// An address for empty operands, whose spans may have none. Nobody reads or writes it.
func addressOfNothing() -> UnsafeMutableRawPointer { UnsafeMutableRawPointer(bitPattern: 64)! }

/// A read-only operand as kernels address it.
struct AttentionOperand {
    let base: UnsafeRawPointer
    let type: StorageType
    /// Whether the memory is that of `CachedRows`: the address of a `PagedRows` per head.
    let isCached: Bool
    let geometry: TensorGeometry

    init<Element: AttentionElement>(_ view: TensorView<Element>) {
        base = view.span.withUnsafeBufferPointer { UnsafeRawPointer($0.baseAddress) ?? UnsafeRawPointer(addressOfNothing()) }
        type = Element.storageType
        isCached = Element.self == CachedElement.self
        geometry = view.geometry
    }

    /// Adjacent rows of floats, `[heads, tokens, channels]`.
    init(floats base: UnsafePointer<Float>, geometry: TensorGeometry) {
        self.init(base: UnsafeRawPointer(base), type: .float32, geometry: geometry)
    }

    private init(base: UnsafeRawPointer, type: StorageType, isCached: Bool = false, geometry: TensorGeometry) {
        self.base = base
        self.type = type
        self.isCached = isCached
        self.geometry = geometry
    }

    /// The operand whose head 0 is `head` of this one.
    func from(head: Int) -> AttentionOperand {
        let bytes = head * (isCached ? MemoryLayout<CachedElement>.stride : geometry.headStride * type.byteCount)
        return AttentionOperand(base: base + bytes, type: type, isCached: isCached, geometry: geometry)
    }

    /// The rows of one head from `token` on.
    func rows(head: Int, from token: Int = 0) -> RowOperand {
        if isCached {
            let pages = base.assumingMemoryBound(to: CachedElement.self)[head].rows
            return RowOperand(pages: pages, first: geometry.firstToken + token)
        }
        let bytes = geometry.offset(head: head, token: token) * type.byteCount
        return RowOperand(base: base + bytes, stride: geometry.tokenStride, type: type)
    }
}

/// An operand that kernels write.
struct MutableAttentionOperand {
    let base: UnsafeMutableRawPointer
    let type: StorageType
    let geometry: TensorGeometry

    init<Element: AttentionElement>(_ view: consuming MutableTensorView<Element>) {
        self.init(addressing: &view)
    }

    /// Takes the address of a view that the caller keeps.
    init<Element: AttentionElement>(addressing view: inout MutableTensorView<Element>) {
        precondition(Element.self != CachedElement.self, "cached rows are not written")
        geometry = view.geometry
        type = Element.storageType
        base = view.span.withUnsafeMutableBufferPointer { UnsafeMutableRawPointer($0.baseAddress) ?? addressOfNothing() }
    }

    /// Adjacent rows of floats, `[heads, tokens, channels]`.
    init(floats base: UnsafeMutablePointer<Float>, geometry: TensorGeometry) {
        self.init(base: UnsafeMutableRawPointer(base), type: .float32, geometry: geometry)
    }

    private init(base: UnsafeMutableRawPointer, type: StorageType, geometry: TensorGeometry) {
        self.base = base
        self.type = type
        self.geometry = geometry
    }

    /// The operand whose head 0 is `head` of this one.
    func from(head: Int) -> MutableAttentionOperand {
        MutableAttentionOperand(base: base + head * geometry.headStride * type.byteCount, type: type, geometry: geometry)
    }

    /// The address of a row.
    func row(head: Int, token: Int) -> UnsafeMutableRawPointer {
        base + geometry.offset(head: head, token: token) * type.byteCount
    }
}
