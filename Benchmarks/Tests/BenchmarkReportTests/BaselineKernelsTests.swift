import BenchmarkReport
import Testing

/// A baseline that does not know the processor is detected, and speed-ups over it are not reported.
@Suite("Baseline kernels")
struct BaselineKernelsTests {
    typealias Level = BaselineKernels.Level
    typealias Decision = BaselineKernels.Decision

    private func decide(
        _ core: String, _ machine: Level, userChoice: String? = nil, hasRestarted: Bool = false
    ) -> Decision {
        BaselineKernels.decide(core: core, machine: machine, userChoice: userChoice, hasRestarted: hasRestarted)
    }

    @Test("names of kernel sets have levels, in any case")
    func levels() {
        for name in ["SkylakeX", "SKYLAKEX", "Cooperlake", "SapphireRapids"] {
            #expect(BaselineKernels.level(ofCore: name) == .avx512)
        }
        for name in ["Haswell", "Zen", "zen"] { #expect(BaselineKernels.level(ofCore: name) == .avx2) }
        for name in ["Prescott", "Nehalem", "Sandybridge", "Bulldozer", "Excavator", "generic"] {
            #expect(BaselineKernels.level(ofCore: name) == .portable)
        }
        for name in ["NEOVERSEN1", "ARMV8", "GraniteRapids", ""] { #expect(BaselineKernels.level(ofCore: name) == nil) }
        #expect(Level.portable < .avx2 && Level.avx2 < .avx512)
    }

    @Test("a set of the machine's level is kept; one below it is not")
    func below() {
        for (core, machine) in [("Zen", Level.avx2), ("Haswell", .avx2), ("SkylakeX", .avx512), ("Prescott", .portable)] {
            #expect(decide(core, machine) == .keep)
        }
        // A fifth-generation Xeon and a Zen 5 under OpenBLAS 0.3.21.
        #expect(decide("Prescott", .avx512) == .restart)
        #expect(decide("Haswell", .avx512) == .restart)
        #expect(decide("Prescott", .avx2) == .restart)
        // Above the machine's level as the kernels see it, as under a hypervisor that hides VNNI.
        #expect(decide("SkylakeX", .avx2) == .keep)
        #expect(decide("NEOVERSEN1", .portable) == .keep && decide("GraniteRapids", .avx512) == .keep)
    }

    @Test("no process restarts twice", arguments: Level.allCases)
    func noLoop(_ machine: Level) {
        for core in ["Prescott", "Haswell", "Zen", "SkylakeX", "unknown"] {
            for choice in [nil, "Haswell", "Prescott", ""] {
                #expect(decide(core, machine, userChoice: choice, hasRestarted: true) != .restart)
            }
        }
    }

    @Test("a restart that did not help leaves the comparison out, with the reason")
    func unfit() {
        guard case .unfit(let reason) = decide("Prescott", .avx512, hasRestarted: true) else {
            Issue.record("kept")
            return
        }
        #expect(reason.contains("Prescott") && reason.contains("avx512"))
        #expect(decide("SkylakeX", .avx512, hasRestarted: true) == .keep)
    }

    @Test("what the user chose is kept; where the library does not have it, nothing is chosen in its place")
    func userChoice() {
        #expect(decide("Prescott", .avx512, userChoice: "Prescott") == .keep)
        #expect(decide("Haswell", .avx512, userChoice: "HASWELL") == .keep)
        #expect(decide("SkylakeX", .avx512, userChoice: "SapphireRapids") == .keep)
        guard case .unfit(let reason) = decide("Prescott", .avx512, userChoice: "SapphireRapids") else {
            Issue.record("kept")
            return
        }
        #expect(reason.contains("SapphireRapids") && reason.contains("Prescott"))
        #expect(decide("Prescott", .avx512, userChoice: "") == .restart)
    }

    @Test("candidates are of the machine's level, and of features that it has")
    func candidates() {
        for features in [Set<BaselineKernels.Feature>(), [.bfloat16], [.bfloat16, .matrixTiles], [.matrixTiles]] {
            for isAMD in [false, true] {
                for level in Level.allCases {
                    let names = BaselineKernels.candidates(for: level, features: features, isAMD: isAMD)
                    #expect(names.allSatisfy { BaselineKernels.level(ofCore: $0) == level })
                    #expect(names.isEmpty == (level == .portable))
                }
            }
        }
        #expect(BaselineKernels.candidates(for: .avx512, features: [], isAMD: false) == ["SkylakeX"])
        #expect(BaselineKernels.candidates(for: .avx512, features: [.bfloat16], isAMD: true) == ["Cooperlake", "SkylakeX"])
        #expect(
            BaselineKernels.candidates(for: .avx512, features: [.bfloat16, .matrixTiles], isAMD: false)
                == ["SapphireRapids", "Cooperlake", "SkylakeX"])
        #expect(BaselineKernels.candidates(for: .avx2, features: [], isAMD: true) == ["Zen", "Haswell"])
        #expect(BaselineKernels.candidates(for: .avx2, features: [], isAMD: false) == ["Haswell"])
    }

    @Test("features are read from the flags of the first processor")
    func features() {
        let xeon = """
            processor\t: 0
            vendor_id\t: GenuineIntel
            model name\t: INTEL(R) XEON(R) PLATINUM 8592+
            flags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16 amx_tile amx_int8

            processor\t: 1
            vendor_id\t: GenuineIntel
            flags\t\t: fpu
            """
        let (features, isAMD) = BaselineKernels.features(cpuinfo: xeon)
        #expect(features == [.bfloat16, .matrixTiles] && !isAMD)
        let zen = BaselineKernels.features(cpuinfo: "vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2 avx512_bf16x\n")
        #expect(zen.features.isEmpty && zen.isAMD)
        let none = BaselineKernels.features(cpuinfo: "")
        #expect(none.features.isEmpty && !none.isAMD)
    }
}
