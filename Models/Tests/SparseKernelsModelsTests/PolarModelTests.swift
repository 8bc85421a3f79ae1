import PolarSparsity
import SparseKernels
import SparseKernelsModels
import SparseKernelsReference
import Testing

@Suite("Language models whose steps attend with some heads")
struct PolarModelTests {
    private let windows = (0..<4).map { seed in (0..<40).map { (seed * 31 + $0 * $0 * 7 + $0) % 32 } }

    private func options(_ decoding: DecodingMethod) -> SessionOptions {
        SessionOptions(decoding: decoding, keyFormat: .float32, valueFormat: .float32)
    }

    /// The logits of steps of two sequences at once.
    private func steps(_ model: LanguageModel, _ decoding: DecodingMethod) throws -> (logits: [Float], read: Double) {
        let session = try LanguageSession(model, options(decoding))
        let sequences = [session.makeSequence(), session.makeSequence()]
        var rows = try session.append([windows[0], windows[1]], to: sequences).elements
        for step in 0..<5 { rows += try session.append([[step], [7 + step]], to: sequences).elements }
        return (rows, session.statistics.decodingReadFraction)
    }

    @Test("all heads are dense decoding; fewer heads read less, and the first layer is dense", arguments: [false, true])
    func heads(byGroup: Bool) throws {
        let tiny = try TinyLlama()
        let plain = try LanguageModel(folder: tiny.folder, linear: .float32)
        let routers = try plain.fittedHeadRouters(windows: windows, byGroup: byGroup, RouterFitting())
        #expect(routers.map(\.heads) == [byGroup ? 2 : 4, byGroup ? 2 : 4])
        let model = try plain.with(headRouters: routers)
        let dense = try steps(plain, .dense)
        let all = try steps(model, .polar(heads: byGroup ? 2 : 4))
        #expect(zip(dense.logits, all.logits).allSatisfy { abs($0 - $1) < 1e-4 } && all.read == 1)
        let half = try steps(model, .polar(heads: 1))
        #expect(half.logits != dense.logits)
        // One of two groups of the second of two layers is not read.
        #expect(abs(half.read - 0.75) < 1e-9)
        #expect(half.logits.allSatisfy { $0.isFinite })
    }

    @Test("routers that are missing or do not fit are errors")
    func errors() throws {
        let tiny = try TinyLlama()
        let model = try LanguageModel(folder: tiny.folder)
        func expect(
            _ code: SparseKernelsError.Code, _ argument: String, sourceLocation: SourceLocation = #_sourceLocation,
            _ body: () throws -> Void
        ) {
            let error = #expect(throws: SparseKernelsError.self, sourceLocation: sourceLocation) { try body() }
            #expect(error?.code == code && error?.argument == argument, sourceLocation: sourceLocation)
        }
        expect(.invalidArgument, "decoding") { _ = try LanguageSession(model, options(.polar(heads: 1))) }
        let router = try HeadRouter(weight: .normal([4, 12], seed: 1))
        expect(.invalidShape, "headRouters") { _ = try model.with(headRouters: [router]) }
        let narrow = try HeadRouter(weight: .normal([4, 11], seed: 1))
        expect(.invalidShape, "headRouters[1]") { _ = try model.with(headRouters: [router, narrow]) }
        let routed = try model.with(headRouters: [router, router])
        for heads in [-1, 5] {
            expect(.invalidArgument, "decoding.heads") { _ = try LanguageSession(routed, options(.polar(heads: heads))) }
        }
    }
}
