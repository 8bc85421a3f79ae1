import HostileFiles
import QServe
import SVDQuant
import Testing

@Suite("Hostile checkpoints")
struct HostileCheckpointTests {
    @Test("the samples are accepted, each by its own importers")
    func samples() throws {
        for sample in try sampleCheckpoints() { #expect(try importEverything(sample) > 0) }
    }

    /// The fuzzing program in `Fuzz/` runs the same generator without a limit.
    @Test("a thousand damaged checkpoints only give typed errors")
    func damaged() throws {
        var mutator = try CheckpointMutator(seed: 4, samples: sampleCheckpoints())
        var (accepted, rejected) = (0, 0)
        for _ in 0..<1000 {
            do {
                if try importEverything(mutator.next()) > 0 { accepted += 1 } else { rejected += 1 }
            } catch is SparseKernelsError {
                rejected += 1
            }
        }
        #expect(accepted > 50 && rejected > 50, "\(accepted) accepted, \(rejected) rejected")
    }
}
