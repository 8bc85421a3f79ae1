#if arch(x86_64)
    internal import CIntrinsics
#endif

/// The features that the processor and the operating system offer, read once.
enum CPUFeatures {
    /// Whether the processor has AVX2, FMA and F16C, and the operating system saves the 256-bit registers.
    static let hasAVX2 = detect().avx2
    /// Whether the processor has AVX-512 F, CD, BW, DQ, VL and VNNI, and the operating system saves the 512-bit registers.
    static let hasAVX512 = detect().avx512

    private static func detect() -> (avx2: Bool, avx512: Bool) {
        #if arch(x86_64)
            guard let base = leaf(1), let extended = leaf(7) else { return (false, false) }
            let osxsave = bit(base.ecx, 27)
            // In XCR0, bits 1–2 are the xmm and ymm state, and bits 5–7 the mask registers and the two halves of zmm.
            let saved = osxsave ? sparsekernels_xcr0() : 0
            let savesYMM = saved & 0b110 == 0b110
            let savesZMM = saved & 0b1110_0110 == 0b1110_0110
            // x86-64-v3 also allows the compiler to use BMI1, BMI2, LZCNT and MOVBE.
            let lzcnt = leaf(0x8000_0001).map { bit($0.ecx, 5) } ?? false
            let v3 =
                bit(base.ecx, 28) && bit(base.ecx, 12) && bit(base.ecx, 29) && bit(base.ecx, 22) && bit(extended.ebx, 5)
                && bit(extended.ebx, 3) && bit(extended.ebx, 8) && lzcnt
            // In EBX, F is bit 16, DQ 17, CD 28, BW 30 and VL 31; in ECX, VNNI is bit 11.
            let v4 = [16, 17, 28, 30, 31].allSatisfy { bit(extended.ebx, $0) } && bit(extended.ecx, 11)
            return (v3 && savesYMM, v3 && v4 && savesZMM)
        #else
            return (false, false)
        #endif
    }

    #if arch(x86_64)
        private static func leaf(_ number: UInt32) -> (ebx: UInt32, ecx: UInt32)? {
            var eax: UInt32 = 0
            var ebx: UInt32 = 0
            var ecx: UInt32 = 0
            var edx: UInt32 = 0
            return __get_cpuid_count(number, 0, &eax, &ebx, &ecx, &edx) == 1 ? (ebx, ecx) : nil
        }

        private static func bit(_ word: UInt32, _ index: Int) -> Bool { word >> UInt32(index) & 1 == 1 }
    #endif
}
