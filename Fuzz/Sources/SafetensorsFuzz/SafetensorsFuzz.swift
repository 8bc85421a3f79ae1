import Foundation
import SparseKernels

/// Feeds damaged files to the reader of safetensors, or to all importers of quantised checkpoints. They must refuse such files
/// with a `SparseKernelsError` and in no other way.
///
///     swift run -c release safetensors-fuzz --runs 1000000 --seed 1
///     swift run -c release safetensors-fuzz --checkpoints --runs 100000 --seed 1
@main
struct SafetensorsFuzz {
    static func main() throws {
        guard let options = Options(CommandLine.arguments.dropFirst()) else {
            print("usage: safetensors-fuzz [--checkpoints] [--runs N] [--seed S]")
            exit(2)
        }
        // Every block of inputs has its own seed, so that a failure can be repeated without the inputs before it.
        let blockSize = 10_000
        let samples = try options.readsCheckpoints ? sampleCheckpoints() : sampleSafetensors()
        var mutator = SafetensorsMutator(seed: options.seed, samples: samples)
        var checkpoints = try CheckpointMutator(seed: options.seed, samples: samples)
        var accepted = 0
        var rejected: [String: Int] = [:]
        var messages: Set<String> = []
        var checksum: UInt64 = 0
        let clock = ContinuousClock()
        let start = clock.now
        var lastReport = start

        for run in 0..<options.runs {
            let block = UInt64(run / blockSize)
            if run % blockSize == 0 {
                mutator = SafetensorsMutator(seed: options.seed &+ block, samples: samples)
                checkpoints = try CheckpointMutator(seed: options.seed &+ block, samples: samples)
            }
            let input = try options.readsCheckpoints ? checkpoints.next() : mutator.next()
            do {
                if options.readsCheckpoints {
                    accepted += try importEverything(input)
                } else {
                    checksum &+= try readEverything(input, rewrites: run % 8 == 0)
                    accepted += 1
                }
            } catch let error as SparseKernelsError {
                rejected[error.code.description, default: 0] += 1
                messages.insert(String(error.expected.filter { !$0.isNumber }.prefix(24)))
            } catch {
                print("FAIL run \(run): \(error)")
                print("input: \(input)")
                print(
                    "repeat with: \(options.readsCheckpoints ? "--checkpoints " : "")--seed \(options.seed &+ block) "
                        + "--runs \(run % blockSize + 1)")
                exit(1)
            }
            if clock.now - lastReport > .seconds(5) {
                lastReport = clock.now
                print("… \(run + 1) of \(options.runs)")
            }
        }
        let seconds = ((clock.now - start) / .milliseconds(100)).rounded() / 10
        let codes = rejected.sorted { $0.key < $1.key }.map { "\($0.value) \($0.key)" }.joined(separator: ", ")
        print(
            "runs \(options.runs), seed \(options.seed): accepted \(accepted), rejected \(codes), "
                + "\(messages.count) kinds of message, checksum \(String(checksum, radix: 16)), \(seconds) s")
    }
}

/// The command line: `--checkpoints --runs N --seed S`.
private struct Options {
    var readsCheckpoints = false
    var runs = 100_000
    var seed: UInt64 = 1

    init?(_ arguments: ArraySlice<String>) {
        var rest = arguments
        while let name = rest.popFirst() {
            if name == "--checkpoints" {
                readsCheckpoints = true
                continue
            }
            let value = rest.popFirst() ?? ""
            switch name {
            case "--runs" where Int(value).map { $0 > 0 } ?? false: runs = Int(value)!
            case "--seed" where UInt64(value) != nil: seed = UInt64(value)!
            default: return nil
            }
        }
    }
}
