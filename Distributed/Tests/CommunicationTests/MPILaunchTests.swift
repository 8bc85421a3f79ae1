import Communication
import Testing

@Suite("MPILaunch")
struct MPILaunchTests {
    @Test("finds what Open MPI, MPICH and Slurm say")
    func launchers() {
        #expect(
            MPILaunch.detect(in: ["OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3"]) == MPILaunch(rank: 2, count: 3))
        #expect(MPILaunch.detect(in: ["PMI_RANK": "0", "PMI_SIZE": "1"]) == MPILaunch(rank: 0, count: 1))
        #expect(MPILaunch.detect(in: ["PMIX_RANK": "5", "SLURM_NTASKS": "8"]) == MPILaunch(rank: 5, count: 8))
    }

    @Test("nothing, half of it or nonsense is no launcher")
    func noLauncher() {
        #expect(MPILaunch.detect(in: [:]) == nil)
        #expect(MPILaunch.detect(in: ["SLURM_NTASKS": "8"]) == nil)
        #expect(MPILaunch.detect(in: ["PMI_RANK": "3", "PMI_SIZE": "3"]) == nil)
        #expect(MPILaunch.detect(in: ["PMI_RANK": "x", "PMI_SIZE": "3"]) == nil)
        #expect(MPILaunch.detect(in: ["OMPI_COMM_WORLD_RANK": "-1", "OMPI_COMM_WORLD_SIZE": "0"]) == nil)
    }
}
