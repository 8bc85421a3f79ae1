internal import Foundation
package import KernelInterface
internal import KernelsPortable

#if SPARSEKERNELS_X86_LEVELS
    internal import KernelsAVX2
    internal import KernelsAVX512
#endif

/// A level of vector instructions that the kernels are compiled for.
///
/// All levels are built from the same sources and are always in the binary. A plan chooses one when it is made: the best that
/// processor and operating system support, unless the caller or the environment variable `SPARSEKERNELS_ISA` names another.
public struct InstructionSet: Hashable, Sendable {
    /// The name, as in `SPARSEKERNELS_ISA`.
    public let name: String

    /// 128-bit vectors that every x86-64 (SSE2) and arm64 (NEON) core has.
    public static let portable = InstructionSet(name: "portable")
    /// 256-bit vectors: AVX2, FMA, F16C.
    public static let avx2 = InstructionSet(name: "avx2")
    /// 512-bit vectors: AVX-512 F, CD, BW, DQ, VL (x86-64-v4) and VNNI.
    public static let avx512 = InstructionSet(name: "avx512")

    /// All levels of this package, best first, whether or not this machine supports them.
    public static let known: [InstructionSet] = [.avx512, .avx2, .portable]

    /// The levels that this machine supports, best first. `portable` is always among them.
    public static let available: [InstructionSet] = known.filter { $0.isAvailable }

    /// The level that plans use by default: the one that `SPARSEKERNELS_ISA` names, or else the best available one.
    ///
    /// - Throws: `.unsupportedInstructionSet` when the variable names a level that is unknown or not supported here.
    public static func selected() throws(SparseKernelsError) -> InstructionSet {
        guard let name = ProcessInfo.processInfo.environment[environmentVariable], !name.isEmpty else { return available[0] }
        return try named(name, argument: environmentVariable)
    }

    /// The level of that name.
    /// - Throws: `.unsupportedInstructionSet` when it is unknown or this machine does not support it.
    public static func named(_ name: String, argument: String = "instructionSet") throws(SparseKernelsError)
        -> InstructionSet
    {
        guard let set = available.first(where: { $0.name == name }) else {
            let isKnown = known.contains { $0.name == name }
            throw SparseKernelsError(
                .unsupportedInstructionSet, argument,
                expected: "one of " + available.map(\.name).joined(separator: ", "),
                actual: isKnown ? "\(name), which this machine does not have" : "\"\(name)\"")
        }
        return set
    }

    /// The name of the environment variable that selects a level.
    public static let environmentVariable = "SPARSEKERNELS_ISA"

    private var isAvailable: Bool {
        #if SPARSEKERNELS_X86_LEVELS
            switch self {
            case .avx512: return CPUFeatures.hasAVX512
            case .avx2: return CPUFeatures.hasAVX2
            default: return true
            }
        #else
            return self == .portable
        #endif
    }

    /// The kernels of this level. The caller has checked that the machine supports it.
    package var kernels: any KernelTable.Type {
        precondition(isAvailable, "the machine does not have \(name)")
        #if SPARSEKERNELS_X86_LEVELS
            switch self {
            case .avx512: return KernelsAVX512.Kernels.self
            case .avx2: return KernelsAVX2.Kernels.self
            default: break
            }
        #endif
        return KernelsPortable.Kernels.self
    }

    /// The level that a plan uses: `requested` when given, or else `selected()`.
    package static func resolve(_ requested: InstructionSet?) throws(SparseKernelsError) -> InstructionSet {
        guard let requested else { return try selected() }
        return try named(requested.name)
    }
}

extension InstructionSet: CustomStringConvertible {
    public var description: String { name }
}
