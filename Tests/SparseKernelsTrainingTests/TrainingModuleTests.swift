import SparseKernelsTraining
import Testing

@Suite struct TrainingModuleTests {
    @Test("the module brings the operators that it differentiates")
    func exports() throws {
        let norm = try RMSNorm(channels: 3, epsilon: 1e-5)
        #expect(norm.channels == 3)
    }
}
