import FastDLLM
import Foundation
import SparseKernels
import SparseKernelsModels
import Testing

/// The trained model and its recorded traces: those of a forward pass in double precision.
enum DiffusionGoldens {
    static let folder: String = {
        let checkout = URL(fileURLWithPath: #filePath).pathComponents.dropLast(4).joined(separator: "/").dropFirst()
        let environment = ProcessInfo.processInfo.environment["SPARSEKERNELS_DATA"]
        return environment ?? URL(fileURLWithPath: String(checkout)).deletingLastPathComponent().path + "/shared"
    }()

    static func path(_ relative: String) -> String { "\(folder)/\(relative)" }
    static let isThere = ["models/diffusion-lm/config.json", "goldens/models/diffusion_lm_decode.safetensors"].allSatisfy {
        FileManager.default.fileExists(atPath: path($0))
    }
    static let absence: Comment = "no diffusion-lm in \(folder), which SPARSEKERNELS_DATA can move"
    static let model = Result { try LanguageModel(folder: path("models/diffusion-lm")) }
    static let decoding = Result { try SafetensorsFile(path: path("goldens/models/diffusion_lm_decode.safetensors")) }

    /// The rules and caches of the recorded runs, by their names.
    static let variants: [(name: String, configuration: FastDLLMConfiguration)] = [
        ("fixed64", .init(rule: .schedule(steps: 64), cache: .none)),
        ("fixed32", .init(rule: .schedule(steps: 32), cache: .none)),
        ("fixed32_dual", .init(rule: .schedule(steps: 32), cache: .dual)),
        ("thr090", .init(rule: .threshold(0.9), cache: .none)),
        ("thr090_prefix", .init(rule: .threshold(0.9), cache: .prefix)),
        ("thr090_dual", .init(rule: .threshold(0.9), cache: .dual)),
        ("factor100", .init(rule: .factor(1), cache: .none)), ("factor100_dual", .init(rule: .factor(1), cache: .dual)),
    ]

    struct Recorded: Decodable {
        struct Prompt: Decodable {
            struct Variant: Decodable {
                let forwards: Int
                let releasedForwards: Int
                let queryRows: Int
                let smallestMargin: Double

                enum CodingKeys: String, CodingKey {
                    case forwards
                    case releasedForwards = "forwards_official_loop"
                    case queryRows = "query_rows"
                    case smallestMargin = "smallest_margin"
                }
            }
            let task: String
            let variants: [String: Variant]
        }
        let prompts: [Prompt]
    }

    static func integers(_ name: String) throws -> [Int] {
        try decoding.get().tensor(name, as: Int32.self).elements.map { Int($0) }
    }
}

@Suite("diffusion-lm, as recorded", .enabled(if: DiffusionGoldens.isThere, DiffusionGoldens.absence))
struct DiffusionGoldenTests {
    @Test("the logits of a sequence with masks")
    func forward() throws {
        let file = try SafetensorsFile(path: DiffusionGoldens.path("goldens/models/diffusion_lm_forward.safetensors"))
        let tokens = try file.tensor("in.masked", as: Int32.self).elements.map { Int($0) }
        let expected = try file.tensor("out.logits", as: Float.self)
        let session = try DiffusionSession(DiffusionGoldens.model.get(), capacity: tokens.count)
        #expect(session.maskToken == 256 && session.vocabularySize == 258)
        let logits = try session.logits(of: Array(tokens.indices), running: tokens.indices, in: tokens)
        #expect(logits.shape == expected.shape)
        let difference = zip(logits.elements, expected.elements).reduce(Float(0)) { max($0, abs($1.0 - $1.1)) }
        #expect(difference < 1e-3, "\(difference)")
    }

    @Test("every rule and cache commits what was recorded", arguments: 0..<3, DiffusionGoldens.variants.indices)
    func traces(_ prompt: Int, _ variant: Int) throws {
        let (name, configuration) = DiffusionGoldens.variants[variant]
        let prefix = "p\(prompt).\(name)"
        let file = try DiffusionGoldens.decoding.get()
        let parameters = try JSONDecoder().decode(
            DiffusionGoldens.Recorded.self, from: Data((file.metadata["params"] ?? "").utf8))
        let recorded = try #require(parameters.prompts[prompt].variants[name])
        let tokens = try DiffusionGoldens.integers("in.p\(prompt).prompt")
        var session = try DiffusionSession(DiffusionGoldens.model.get(), capacity: 256)
        let result = try FastDLLMDecoder(configuration).generate(tokens, length: 64, with: &session)

        #expect(try result.sequence == DiffusionGoldens.integers("out.\(prefix).ids"))
        #expect(result.forwardPasses == recorded.forwards && result.queryRows == recorded.queryRows)
        #expect(result.releasedForwardPasses == recorded.releasedForwards)
        let (forwards, positions) = try (
            DiffusionGoldens.integers("out.\(prefix).forward"), DiffusionGoldens.integers("out.\(prefix).position")
        )
        let ids = try DiffusionGoldens.integers("out.\(prefix).token")
        let confidences = try file.tensor("aux.\(prefix).confidence", as: Double.self).elements
        var (moved, nearest) = (0, Double.infinity)
        for step in result.steps {
            let entries = forwards.indices.filter { forwards[$0] == step.forward }
            let (committed, expected) = (Set(step.commits.map(\.position)), Set(entries.map { positions[$0] }))
            nearest = min(nearest, step.positionMargin)
            // In single precision the logits of the model decide between confidences that agree in nine digits.
            if committed != expected {
                moved += 1
                #expect(step.positionMargin < 1e-6, "\(prefix), pass \(step.forward): \(committed) for \(expected)")
                continue
            }
            for commit in step.commits {
                let entry = try #require(entries.first { positions[$0] == commit.position })
                #expect(ids[entry] == commit.token)
                #expect(abs(confidences[entry] - commit.confidence) < 1e-4)
            }
        }
        print(
            "\(prefix): \(result.forwardPasses) passes, \(result.nearTies) with a near-tie, \(moved) with other positions, "
                + "nearest decision \(nearest), recorded \(recorded.smallestMargin)")
        #expect(moved == 0 || recorded.smallestMargin < 1e-6)
    }

    @Test("the logits of the first pass over a block", arguments: ["thr090", "thr090_prefix", "thr090_dual"])
    func blockLogits(_ name: String) throws {
        let expected = try DiffusionGoldens.decoding.get().tensor("aux.p0.\(name).block0_forward0_logits", as: Float.self)
        let tokens = try DiffusionGoldens.integers("in.p0.prompt") + Array(repeating: 256, count: 64)
        let session = try DiffusionSession(DiffusionGoldens.model.get(), capacity: 88)
        let logits = try session.logits(of: Array(24..<56), running: 0..<88, in: tokens)
        let difference = zip(logits.elements, expected.elements).reduce(Float(0)) { max($0, abs($1.0 - $1.1)) }
        #expect(difference < 1e-3, "\(difference)")
    }

    @Test("pages of half precision and of 8 bits commit the same answer", arguments: [KVFormat.float16, .int8])
    func formats(_ format: KVFormat) throws {
        let tokens = try DiffusionGoldens.integers("in.p1.prompt")
        var session = try DiffusionSession(DiffusionGoldens.model.get(), capacity: 90, cacheFormat: format)
        let result = try FastDLLMDecoder(FastDLLMConfiguration(cache: .dual)).generate(tokens, length: 64, with: &session)
        #expect(try result.sequence == DiffusionGoldens.integers("out.p1.thr090_dual.ids"))
    }
}
