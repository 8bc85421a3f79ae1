#if os(Linux) && canImport(Glibc)
    import Glibc
    import Synchronization

    /// Counts every heap allocation of the process, on every thread, from its installation on.
    ///
    /// Calls from one shared object to another go through a table of addresses that the dynamic linker fills (the relocations
    /// of a GOT). Installing the counter overwrites the entries of `malloc` and its relatives, in every loaded object, with
    /// functions that count and call the original. This cannot be undone, so install it in a process of its own, an exit test.
    ///
    /// It does not count memory that is mapped directly, or allocations within the C library.
    package enum AllocationCounter {
        /// The number of allocations so far.
        package static var count: Int { allocations.load(ordering: .relaxed) }

        /// Starts counting. Returns the number of overwritten addresses.
        package static func install() -> Int {
            // Globals are initialised on first use. That may allocate, which must not happen inside a counting function.
            _ = (allocations.load(ordering: .relaxed), originals.malloc)
            typealias Visit = @convention(c) (UnsafeRawPointer, Int, UnsafeMutableRawPointer?) -> CInt
            typealias Iterate = @convention(c) (Visit, UnsafeMutableRawPointer?) -> CInt
            let iterate = unsafeBitCast(dlsym(nil, "dl_iterate_phdr"), to: Iterate.self)
            var patched = 0
            withUnsafeMutablePointer(to: &patched) { patched in
                _ = iterate(
                    { object, _, patched in
                        let count = patched!.assumingMemoryBound(to: Int.self)
                        count.pointee += LoadedObject(object)?.redirect() ?? 0
                        return 0
                    }, patched)
            }
            return patched
        }
    }

    // MARK: - Counting functions

    private let allocations = Atomic<Int>(0)

    private typealias Allocate = @convention(c) (Int) -> UnsafeMutableRawPointer?
    private typealias AllocateTwo = @convention(c) (Int, Int) -> UnsafeMutableRawPointer?
    private typealias Reallocate = @convention(c) (UnsafeMutableRawPointer?, Int) -> UnsafeMutableRawPointer?
    private typealias AllocateInto = @convention(c) (UnsafeMutablePointer<UnsafeMutableRawPointer?>, Int, Int) -> CInt

    private struct Originals {
        let malloc = unsafeBitCast(dlsym(nil, "malloc"), to: Allocate.self)
        let calloc = unsafeBitCast(dlsym(nil, "calloc"), to: AllocateTwo.self)
        let realloc = unsafeBitCast(dlsym(nil, "realloc"), to: Reallocate.self)
        let posixMemalign = unsafeBitCast(dlsym(nil, "posix_memalign"), to: AllocateInto.self)
        let alignedAlloc = unsafeBitCast(dlsym(nil, "aligned_alloc"), to: AllocateTwo.self)
        let memalign = unsafeBitCast(dlsym(nil, "memalign"), to: AllocateTwo.self)
    }

    private let originals = Originals()

    private let countingMalloc: Allocate = { size in
        allocations.wrappingAdd(1, ordering: .relaxed)
        return originals.malloc(size)
    }
    private let countingCalloc: AllocateTwo = { count, size in
        allocations.wrappingAdd(1, ordering: .relaxed)
        return originals.calloc(count, size)
    }
    private let countingRealloc: Reallocate = { pointer, size in
        allocations.wrappingAdd(1, ordering: .relaxed)
        return originals.realloc(pointer, size)
    }
    private let countingPosixMemalign: AllocateInto = { result, alignment, size in
        allocations.wrappingAdd(1, ordering: .relaxed)
        return originals.posixMemalign(result, alignment, size)
    }
    private let countingAlignedAlloc: AllocateTwo = { alignment, size in
        allocations.wrappingAdd(1, ordering: .relaxed)
        return originals.alignedAlloc(alignment, size)
    }
    private let countingMemalign: AllocateTwo = { alignment, size in
        allocations.wrappingAdd(1, ordering: .relaxed)
        return originals.memalign(alignment, size)
    }

    private let replacements: [String: UInt] = [
        "malloc": unsafeBitCast(countingMalloc, to: UInt.self),
        "calloc": unsafeBitCast(countingCalloc, to: UInt.self),
        "realloc": unsafeBitCast(countingRealloc, to: UInt.self),
        "posix_memalign": unsafeBitCast(countingPosixMemalign, to: UInt.self),
        "aligned_alloc": unsafeBitCast(countingAlignedAlloc, to: UInt.self),
        "memalign": unsafeBitCast(countingMemalign, to: UInt.self),
    ]

    // MARK: - ELF

    /// A loaded ELF file and its dynamic section, with the structures and tags of <link.h> and <elf.h> in 64 bits.
    private struct LoadedObject {
        private var symbols: UnsafeRawPointer?
        private var names: UnsafePointer<CChar>?
        private var tables: [(start: UnsafeRawPointer, byteCount: Int)] = []
        private let base: UInt

        /// - Parameter info: a `struct dl_phdr_info`, which has load address, name, program headers and their number.
        init?(_ info: UnsafeRawPointer) {
            let base = info.load(as: UInt.self)
            self.base = base
            let headers = info.load(fromByteOffset: 16, as: UnsafeRawPointer.self)
            let count = Int(info.load(fromByteOffset: 24, as: UInt16.self))
            var dynamic: UnsafeRawPointer?
            for header in (0..<count).map({ headers + $0 * 56 }) where header.load(as: UInt32.self) == 2 {  // PT_DYNAMIC
                dynamic = UnsafeRawPointer(bitPattern: base + header.load(fromByteOffset: 16, as: UInt.self))
            }
            guard var entry = dynamic else { return nil }
            var starts: [UInt: UInt] = [:]
            while entry.load(as: UInt.self) != 0 {
                starts[entry.load(as: UInt.self)] = entry.load(fromByteOffset: 8, as: UInt.self)
                entry += 16
            }
            // The linker has made addresses absolute, except the small ones in the kernel's own object.
            func address(_ tag: UInt) -> UnsafeRawPointer? {
                starts[tag].flatMap { UnsafeRawPointer(bitPattern: $0 < base ? $0 + base : $0) }
            }
            symbols = address(6)  // DT_SYMTAB
            names = address(5)?.assumingMemoryBound(to: CChar.self)  // DT_STRTAB
            // DT_RELA and DT_RELASZ are for data, DT_JMPREL and DT_PLTRELSZ for calls.
            for (start, size) in [(address(7), starts[8]), (address(23), starts[2])] {
                if let start, let size { tables.append((start, Int(size))) }
            }
        }

        /// Overwrites the resolved addresses of allocation functions.
        func redirect() -> Int {
            guard let symbols, let names else { return 0 }
            var patched = 0
            for table in tables {
                for relocation in stride(from: 0, to: table.byteCount, by: 24).map({ table.start + $0 }) {
                    let info = relocation.load(fromByteOffset: 8, as: UInt.self)
                    // On x86-64, R_X86_64_GLOB_DAT and JUMP_SLOT. On arm64, R_AARCH64_GLOB_DAT and JUMP_SLOT.
                    guard [6, 7, 1025, 1026].contains(info & 0xffff_ffff) else { continue }
                    let symbol = symbols + Int(info >> 32) * 24
                    let name = String(cString: names + Int(symbol.load(as: UInt32.self)))
                    guard let replacement = replacements[name] else { continue }
                    let slot = UnsafeMutableRawPointer(bitPattern: base + relocation.load(as: UInt.self))!
                    // The linker makes such tables read-only after filling them.
                    let page = Int(sysconf(CInt(_SC_PAGESIZE)))
                    let start = UnsafeMutableRawPointer(bitPattern: UInt(bitPattern: slot) & ~UInt(page - 1))!
                    guard mprotect(start, page, PROT_READ | PROT_WRITE) == 0 else { continue }
                    slot.storeBytes(of: replacement, as: UInt.self)
                    patched += 1
                }
            }
            return patched
        }
    }
#endif
