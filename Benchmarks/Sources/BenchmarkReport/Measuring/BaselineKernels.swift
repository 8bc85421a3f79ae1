/// Decides which of its kernel sets the dense baseline runs, and whether a comparison with that set is fair.
///
/// OpenBLAS chooses a set ("core") when the process starts, from a list of processors that it knows. A newer processor gets a
/// set of older instructions: 0.3.21 takes a fifth-generation Xeon for a Prescott. A speed-up over that says nothing, so the
/// benchmark restarts itself with `OPENBLAS_CORETYPE` set. This type only decides; it starts no process.
public enum BaselineKernels {
    /// Vector levels, in order of width. The names are those of `InstructionSet`.
    public enum Level: String, Comparable, Sendable, CaseIterable {
        case portable, avx2, avx512

        public static func < (a: Level, b: Level) -> Bool { allCases.firstIndex(of: a)! < allCases.firstIndex(of: b)! }
    }

    /// Features of a processor beyond its level that decide among sets of one level.
    public enum Feature: String, Sendable, CaseIterable {
        /// The name in the flags of `/proc/cpuinfo`.
        case bfloat16 = "avx512_bf16"
        case matrixTiles = "amx_tile"
    }

    /// The level of a set by its name, in any case; nil for an unknown name, newer or of another processor family.
    public static func level(ofCore name: String) -> Level? {
        levels.first { $0.names.contains(name.lowercased()) }?.level
    }

    /// The x86 names of OpenBLAS up to 0.3.30. For single-precision products Excavator, Steamroller, Piledriver, Bulldozer and
    /// Sandybridge are AVX without AVX2.
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

    /// Names to try on a machine, best first. A library may lack some, depending on its age and how it was built.
    ///
    /// - Parameters:
    ///   - level: the best level of the machine.
    ///   - features: the features of the machine.
    ///   - isAMD: whether the vendor is AMD, whose AVX2 processors have their own set.
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

    /// The features and the vendor in the text of `/proc/cpuinfo`.
    public static func features(cpuinfo text: String) -> (features: Set<Feature>, isAMD: Bool) {
        func words(_ key: String) -> [Substring] {
            // All processors are assumed to be like the first.
            let line = text.split(separator: "\n").first { $0.prefix { $0 != ":" && $0 != "\t" && $0 != " " } == key }
            return line?.split(separator: ":", maxSplits: 1).last?.split(separator: " ") ?? []
        }
        let flags = Set(words("flags").map(String.init))
        return (Set(Feature.allCases.filter { flags.contains($0.rawValue) }), words("vendor_id").contains("AuthenticAMD"))
    }

    /// The decision about the set that runs.
    public enum Decision: Equatable, Sendable {
        /// Compare with it.
        case keep
        /// Restart with the best of the candidates that the library has; `unfit` when it has none.
        case restart
        /// Make no comparison.
        case unfit(reason: String)
    }

    /// - Parameters:
    ///   - core: the set that runs, as the library names it.
    ///   - machine: the best level of the machine.
    ///   - userChoice: the value of `OPENBLAS_CORETYPE` when the user started the benchmark.
    ///   - hasRestarted: whether the benchmark restarted this process because of the baseline. It does so only once.
    public static func decide(core: String, machine: Level, userChoice: String?, hasRestarted: Bool) -> Decision {
        if let userChoice, !userChoice.isEmpty, !hasRestarted {
            if core.lowercased() == userChoice.lowercased() { return .keep }
            // The library does not have the requested set, and used its own list.
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

    /// A set of an unknown name does not count as below any level, because names that are missing above are newer.
    private static func isBelow(_ core: String, _ machine: Level) -> Bool {
        level(ofCore: core).map { $0 < machine } ?? false
    }
}
