import SparseKernelsFineTuning
import Testing

@Suite struct FineTuningModuleTests {
    @Test("the module brings the models that it trains")
    func exports() {
        #expect(LinearFormat(rawValue: "float32") == .float32)
    }
}
