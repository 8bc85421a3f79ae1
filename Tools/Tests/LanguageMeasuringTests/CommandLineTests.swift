import ArgumentParser
import Testing

@testable import SparseLMTool

@Suite("The command line of sparse-lm")
struct CommandLineTests {
    /// What the command prints when it refuses arguments.
    private func refusal(_ arguments: [String]) -> String {
        do {
            _ = try SparseLMCommand.parseAsRoot(arguments)
            return ""
        } catch {
            return SparseLMCommand.message(for: error)
        }
    }

    @Test(
        "a wrong method or cache is refused with what is expected instead",
        arguments: ["generate", "perplexity", "needle", "branch"])
    func refusals(command: String) {
        let method = refusal([command, "--method", "xattention:0.9+qest"])
        #expect(
            method.contains("--method") && method.contains("streaming, quest, twilight, lserve and polar, got \"qest\""),
            "\(method)")
        let value = refusal([command, "--method", "xattention:2"])
        #expect(value.contains("a number from 0 to 1 as value 1 of xattention, got \"2\""), "\(value)")
        let cache = refusal([command, "--cache", "int5"])
        #expect(cache.contains("--cache") && cache.contains("int8, int4, each with r behind it"), "\(cache)")
        #expect(refusal([command, "--linear", "w4a4:-1"]).contains("may have :RANK behind them"))
        #expect(refusal([command, "--streaming-heads", "2"]).contains("--streaming-heads takes 0 to 1"))
        #expect(refusal([command, "--mlp", "cats:1.5"]).contains("cats:SPARSITY from 0 to below 1, or cats:FILE, got"))
        #expect(refusal([command, "--method", "dense+quest:25%", "--cache", "int8/int4r", "--mlp", "cats:0.5"]) == "")
    }

    @Test("branch refuses what its mode has no use for")
    func branches() {
        #expect(refusal(["branch", "--child", "x"]).contains("--child is for --mode spawn"))
        #expect(refusal(["branch", "--page-size", "17"]).contains("16, 32, 64 or 128, got 17"))
        #expect(refusal(["branch", "--branches", "0"]).contains("--branches takes 1 to 256, got 0"))
        #expect(refusal(["branch", "--mode", "beam", "--length-penalty", "-1"]) != "")
        #expect(refusal(["branch", "--score", "best"]).contains("meanLogProbability"))
        #expect(refusal(["branch", "--mode", "spawn", "--child", "x", "--child", "y", "--svg", "a.svg"]) == "")
    }

    @Test("so are those of lists")
    func lists() {
        #expect(refusal(["bench", "--methods", "dense,sparge:2"]).contains("a number from 0 to 1 as value 1 of sparge"))
        #expect(refusal(["bench", "--cache", "int8/int3"]).contains("got \"int3\""))
        #expect(refusal(["bench", "--mlp", "dense,cats"]).contains("got \"cats\""))
        #expect(refusal(["thresholds", "--sparsity", "1", "-o", "x"]).contains("--sparsity takes 0 to below 1"))
        #expect(refusal(["table", "--methods", "densest"]).contains("a prefill of dense, xattention"))
        #expect(refusal(["table", "--caches", "float16,int4q"]).contains("got \"int4q\""))
    }

    @Test("so are rules of decoding")
    func rules() {
        #expect(refusal(["diffuse", "--rule", "treshold:0.9"]).contains("got \"treshold:0.9\""))
        #expect(refusal(["diffuse", "--rule", "threshold:2"]).contains("rule.threshold must be from 0 to 1, got 2.0"))
        #expect(refusal(["diffuse", "--rule", "factor:1.3", "--cache", "prefix", "--cache-format", "int8", "-n", "128"]) == "")
        #expect(refusal(["diffuse", "--block", "0"]).contains("blockLength must be at least 1, got 0"))
    }
}
