#if canImport(Glibc)
    internal import Glibc
#elseif canImport(Musl)
    internal import Musl
#elseif canImport(Darwin)
    internal import Darwin
#endif

/// Zeroed memory that the system provides when it is first touched, so that a pool may be larger than the part that is used.
enum LazyMemory {
    /// Allocates pages of 2 MiB where the system has them, because a decoding step reads more memory than the translation
    /// buffers cover with 4 KiB. Returns nil when the system refuses the address space.
    static func allocate(byteCount: Int) -> UnsafeMutableRawPointer? {
        #if canImport(Darwin)
            let flags = MAP_PRIVATE | MAP_ANON
        #else
            let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
        #endif
        let pointer = mmap(nil, max(1, byteCount), PROT_READ | PROT_WRITE, flags, -1, 0)
        if pointer == MAP_FAILED { return nil }
        #if !canImport(Darwin)
            if byteCount >= 4 << 20 { madvise(pointer!, byteCount, MADV_HUGEPAGE) }
        #endif
        return pointer
    }

    static func deallocate(_ pointer: UnsafeMutableRawPointer, byteCount: Int) { munmap(pointer, max(1, byteCount)) }
}
