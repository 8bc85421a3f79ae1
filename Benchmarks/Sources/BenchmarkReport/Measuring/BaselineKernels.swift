/// Which of its kernel sets the dense baseline runs, and whether that is one to compare with.
///
/// OpenBLAS chooses a set ("core") when the process starts, by a list of processors that it knows. One that is newer than the library gets
/// a set of older instructions: 0.3.21 takes a fifth-generation Xeon for a Prescott. A speed-up over that says nothing, so the benchmark
/// starts itself again with `OPENBLAS_CORETYPE` set. This type decides; it starts nothing and asks nobody.
public enum BaselineKernels {
    /// Widths of vectors, in order. The names are those of `InstructionSet`.
    public enum Level: String, Comparable, Sendable, CaseIterable {
        case portable, avx2, avx512

        public static func < (a: Level, b: Level) -> Bool { allCases.firstIndex(of: a)! < allCases.firstIndex(of: b)! }
    }

    /// What a processor has beyond its level, as far as a choice among sets of one level needs it.
    public enum Feature: String, Sendable, CaseIterable {
        /// As in the flags of `/proc/cpuinfo`.
        case bfloat16 = "avx512_bf16"
        case matrixTiles = "amx_tile"
    }

    /// The level of a set by its name, in any case; nil for a name that is not known, which is newer than this list, or of other processors.
    public static func level(ofCore name: String) -> Level? {
        levels.first { $0.names.contains(name.lowercased()) }?.level
    }

    /// The x86 names of OpenBLAS up to 0.3.30. Excavator, Steamroller, Piledriver, Bulldozer and Sandybridge are AVX without AVX2 as far as
    /// their single-precision products go.
    private static let levels: [(level: Level, names: Set<String>)] = [
        (.avx512, ["skylakex", "cooperlake", "sapphirerapids"]),
        (.avx2, ["haswell", "zen"]),
        (
            .portable,
            [
                "generic", "katmai", "coppermine", "northwood", "prescott", "banias", "atom", "core2", "penryn", "dunnington",
                "nehalem", "sandybridge", "athlon", "opteron", "opteron_sse3", "barcelona", "bobcat", "bulldozer", "piledriver",
                "steamroller", "excavator", "nano",
            ]
        ),
    ]

    /// Names to try on a machine, best first. A library has those of its time and of how it was built, so each is only a candidate.
    ///
    /// - Parameters:
    ///   - level: the best of the machine.
    ///   - features: of the machine.
    ///   - isAMD: whose AVX2 processors have a set of their own.
    public static func candidates(for level: Level, features: Set<Feature>, isAMD: Bool) -> [String] {
        switch level {
        case .portable: return []
        case .avx2: return isAMD ? ["Zen", "Haswell"] : ["Haswell"]
        case .avx512:
            var names = ["SkylakeX"]
            if features.contains(.bfloat16) { names.insert("Cooperlake", at: 0) }
            if features.isSuperset(of: [.bfloat16, .matrixTiles]) { names.insert("SapphireRapids", at: 0) }
            return names
        }
    }

    /// Features and vendor in the text of `/proc/cpuinfo`.
    public static func features(cpuinfo text: String) -> (features: Set<Feature>, isAMD: Bool) {
        func words(_ key: String) -> [Substring] {
            // The first processor stands for all.
            let line = text.split(separator: "\n").first { $0.prefix { $0 != ":" && $0 != "\t" && $0 != " " } == key }
            return line?.split(separator: ":", maxSplits: 1).last?.split(separator: " ") ?? []
        }
        let flags = Set(words("flags").map(String.init))
        return (Set(Feature.allCases.filter { flags.contains($0.rawValue) }), words("vendor_id").contains("AuthenticAMD"))
    }

    /// What to do about the set that runs.
    public enum Decision: Equatable, Sendable {
        /// Compare with it.
        case keep
        /// Start again with the best of the candidates that the library has; `unfit` when it has none.
        case restart
        /// Leave the comparison out.
        case unfit(reason: String)
    }

    /// - Parameters:
    ///   - core: the set that runs, as the library names it.
    ///   - machine: the best level of the machine.
    ///   - userChoice: what `OPENBLAS_CORETYPE` said when the user started the benchmark.
    ///   - hasRestarted: whether this process is one that the benchmark started for the sake of the baseline. There is no third.
    public static func decide(core: String, machine: Level, userChoice: String?, hasRestarted: Bool) -> Decision {
        if let userChoice, !userChoice.isEmpty, !hasRestarted {
            if core.lowercased() == userChoice.lowercased() { return .keep }
            // The library does not have what was asked for, and went by its own list.
            guard isBelow(core, machine) else { return .keep }
            return .unfit(
                reason: "OPENBLAS_CORETYPE asks for \(userChoice), OpenBLAS runs \(core), which is below \(machine.rawValue)")
        }
        guard isBelow(core, machine) else { return .keep }
        if hasRestarted {
            return .unfit(reason: "OpenBLAS runs \(core) also when told otherwise, which is below \(machine.rawValue)")
        }
        return .restart
    }

    /// A set of an unknown name is not held to be below anything: the names that are missing above are newer.
    private static func isBelow(_ core: String, _ machine: Level) -> Bool {
        level(ofCore: core).map { $0 < machine } ?? false
    }
}
