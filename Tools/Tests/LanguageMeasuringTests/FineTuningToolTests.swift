import ArgumentParser
import Foundation
import LanguageMeasuring
import SparseKernels
import SparseKernelsFineTuning
import SparseLoRA
import Testing

@testable import LanguageFineTuning
@testable import SparseLMTool

@Suite("The finetune command")
struct FineTuningToolTests {
    private func refusal(_ arguments: [String]) -> String {
        do {
            _ = try SparseLMCommand.parseAsRoot(["finetune"] + arguments)
            return ""
        } catch {
            return SparseLMCommand.message(for: error)
        }
    }

    @Test("refuses numbers out of range")
    func refusals() {
        #expect(refusal(["-o", "x"]) == "" && refusal(["--propose", "x"]) == "")
        #expect(refusal([]).contains("give -o FOLDER to train, or --propose FILE"))
        #expect(refusal(["-o", "x", "--propose", "y"]).contains("give -o FOLDER to train, or --propose FILE"))
        #expect(refusal(["-o", "x", "--targets", "q,z"]).contains("some of q, k, v, o, each of them once"))
        #expect(refusal(["-o", "x", "--scored", "513"]).contains("--scored 1 to --length"))
        #expect(refusal(["-o", "x", "--learning-rate", "0"]).contains("--learning-rate and --alpha take numbers above 0"))
        #expect(refusal(["-o", "x", "--checkpoint-every", "0"]).contains("take 1 or more"))
        #expect(
            refusal(["--propose", "x", "--budget", "1.5"]).contains("--budget takes a number above 0 and up to 1, got 1.5"))
    }

    @Test("targets are read as they are written")
    func targets() throws {
        #expect(try AdapterTargets.read("v,q") == [.query, .value])
        #expect(try AdapterTargets.read("q,k,v,o_proj") == AdapterTarget.allCases)
        for text in ["", "q,q", "Q", "gate"] {
            let error = #expect(throws: SparseKernelsError.self) { _ = try AdapterTargets.read(text) }
            #expect(error?.code == .invalidArgument && error?.actual == "\"\(text)\"")
        }
    }

    @Test("trains, goes on, and makes an adapter that perplexity takes")
    func training() throws {
        let tiny = try TinyBytes()
        defer { withExtendedLifetime(tiny) {} }
        let output = tiny.folder + "/run"
        try Data((0..<3000).map { UInt8(97 + $0 * $0 % 13) }).write(to: URL(fileURLWithPath: tiny.folder + "/text.txt"))
        let sparsity = tiny.folder + "/sparsity.json"
        try SparseLoRAConfiguration(layers: [.init(mlp: 0.75), .init(mlp: 0.5, attention: 0.5)], start: 0.3).write(to: sparsity)
        let arguments = [
            "finetune", "--model", tiny.folder, "--text", tiny.folder + "/text.txt", "-o", output, "--rank", "4", "--alpha",
            "8",
            "--steps", "3", "--batch", "2", "--length", "24", "--scored", "8", "--validation", "4", "--validate-every", "2",
            "--learning-rate", "0.01", "--sparsity", sparsity, "--threads", "1", "--json",
        ]
        var command = try SparseLMCommand.parseAsRoot(arguments)
        try command.run()
        let names = ["adapter_config.json", "adapter_model.safetensors", "checkpoint.safetensors", "losses.csv", "losses.svg"]
        #expect(try FileManager.default.contentsOfDirectory(atPath: output).sorted() == names)
        let table = String(decoding: try contents(ofFile: output + "/losses.csv"), as: UTF8.self).split(separator: "\n")
        #expect(table.count == 5 && table[2].contains(",0,") && table[3].contains(",1,"))
        // All steps are done, so nothing changes.
        let adapter = try contents(ofFile: output + "/adapter_model.safetensors")
        var again = try SparseLMCommand.parseAsRoot(arguments + ["--resume"])
        try again.run()
        #expect(try contents(ofFile: output + "/adapter_model.safetensors") == adapter)
        var perplexity = try SparseLMCommand.parseAsRoot([
            "perplexity", "--model", tiny.folder, "--text", tiny.folder + "/text.txt", "--adapter", output, "--context", "64",
            "--scored", "8", "--windows", "1", "--json", "--threads", "1", "--linear", "float32",
        ])
        try perplexity.run()
    }

    @Test("pictures and summaries have the losses and the times")
    func reports() throws {
        var curve = FineTuningCurve()
        var seconds = TrainingSeconds()
        seconds.mlp = 0.25
        for step in 0..<100 {
            curve.steps.append(
                .init(loss: 2 - Double(step) / 100, gradientNorm: 1, learningRate: 1e-3, isSparse: step >= 50, seconds: seconds)
            )
        }
        curve.validations = [.init(step: 0, loss: 2.5), .init(step: 100, loss: 1.25)]
        let picture = LossChart.svg(curve, title: "Fine-tuning")
        #expect(picture.contains("held out") && picture.contains("nats per token"))
        let means = LossChart.means([1, 2, 3])
        #expect(means.map(\.x) == [1, 2, 3] && means.map(\.y) == [1, 2, 3] && LossChart.means([]).isEmpty)
        #expect(LossChart.means(Array(repeating: 4, count: 600)).count == 60)
    }

    @Test("a proposal is a table of all blocks")
    func proposal() throws {
        let tiny = try TinyBytes()
        defer { withExtendedLifetime(tiny) {} }
        let text = (0..<3000).map { $0 * $0 % 13 + 97 }
        let windows = try TrainingWindows(
            .init(tokens: text, byteCount: text.count), length: 16, scored: 4, validation: 2)
        let model = try FrozenModel(folder: tiny.folder, rank: 2, on: .serial)
        let proposal = try #require(
            try SparsityProposal(model, on: windows, budget: 0.6, sparsities: [0.5, 0.9], batch: 2, pool: .serial))
        #expect(proposal.measurements.count == 8 && proposal.remainingShare <= 0.6)
        let lines = SensitivityTable(proposal).lines
        #expect(lines.count == 3 + 4 + 1 && lines[3].contains("MLP") && lines[4].contains("attention"))
        let stopped = try SparsityProposal(
            model, on: windows, budget: 0.6, sparsities: [0.5, 0.9], batch: 2, pool: .serial
        ) { _, part, _, _ in part == .mlp }
        #expect(stopped == nil)
        let error = #expect(throws: SparseKernelsError.self) {
            _ = try SparsityProposal(model, on: windows, budget: 0.01, sparsities: [0.5], batch: 2, pool: .serial)
        }
        #expect(error?.argument == "budget")
    }
}
