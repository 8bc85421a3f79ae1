import Communication
import Foundation
import Synchronization
import Testing

/// Every fault ends the calls of all ranks, by an error that names a rank and an operation, within the time limit.
@Suite("Failures of LocalCommunicator")
struct LocalFailureTests {
    /// Runs ranks whose errors are caught, so that each rank's own can be looked at.
    private func errors(
        ranks: Int, timeLimit: Double = 20,
        _ body: @escaping @Sendable (LocalCommunicator) throws(SparseKernelsError) -> Void
    ) throws -> [SparseKernelsError?] {
        let start = Date()
        let errors = Slots<SparseKernelsError?>(count: ranks, nil)
        // Thrown again by `run`.
        _ = try? LocalCommunicator.run(ranks: ranks, timeLimit: timeLimit) { (ranks) throws(SparseKernelsError) in
            do throws(SparseKernelsError) { try body(ranks) } catch {
                errors.set(error, at: ranks.rank)
                throw error
            }
        }
        #expect(Date().timeIntervalSince(start) < 10)
        return errors.values
    }

    private func expect(_ error: SparseKernelsError?, _ texts: String..., location: SourceLocation = #_sourceLocation) {
        guard let error else {
            Issue.record("no error", sourceLocation: location)
            return
        }
        #expect(error.code == .communication, sourceLocation: location)
        for text in texts {
            #expect(error.description.contains(text), "\(error) lacks \(text)", sourceLocation: location)
        }
    }

    @Test("an error of a rank ends the calls of the others, and is thrown", arguments: [2, 3, 8])
    func failingRank(_ ranks: Int) throws {
        let broken = SparseKernelsError(.invalidArgument, "x", expected: "1", actual: "2")
        let errors = try errors(ranks: ranks) { (ranks) throws(SparseKernelsError) in
            if ranks.rank == 1 { throw broken }
            try ranks.barrier()
        }
        #expect(errors[1] == broken)
        for rank in 0..<ranks where rank != 1 {
            expect(errors[rank], "barrier of world", "rank 1 of world failed", "x must be 1, got 2")
        }
        #expect(throws: broken) {
            try LocalCommunicator.run(ranks: ranks) { (ranks) throws(SparseKernelsError) in
                if ranks.rank == 1 { throw broken }
                try ranks.barrier()
            }
        }
    }

    @Test("a rank that has returned is missed")
    func leftRank() throws {
        let errors = try errors(ranks: 3) { (ranks) throws(SparseKernelsError) in
            if ranks.rank == 2 { return }
            _ = try ranks.gather([1])
        }
        for rank in 0..<2 { expect(errors[rank], "allGather of world", "rank 2 has left") }
        #expect(errors[2] == nil)
    }

    @Test("what a rank sent before it left arrives")
    func messageOfLeftRank() throws {
        let values = try LocalCommunicator.run(ranks: 2) { (ranks) throws(SparseKernelsError) in
            let message = try MessageBuffer(byteCount: 1)
            if ranks.rank == 1 {
                fill(message, [9])
                _ = try ranks.send(message, 0..<1, to: 0, tag: 0)
                return [UInt8(0)]
            }
            Thread.sleep(forTimeInterval: 0.05)
            try ranks.wait(for: try ranks.receive(into: message, 0..<1, from: 1, tag: 0))
            return bytes(message)
        }
        #expect(values[0] == [9])
    }

    @Test("a rank that does not answer is named, and nobody waits longer than the limit")
    func silentRank() throws {
        let start = Date()
        let errors = try errors(ranks: 4, timeLimit: 0.3) { (ranks) throws(SparseKernelsError) in
            if ranks.rank == 0 {
                Thread.sleep(forTimeInterval: 0.9)
            }
            let message = try MessageBuffer(byteCount: 8)
            // Rank 3 waits for rank 2, which waits for the silent rank.
            try ranks.broadcast(message, 0..<8, from: 0)
        }
        #expect(Date().timeIntervalSince(start) < 3)
        let late = errors.compactMap { $0 }.filter { $0.expected.contains("within 0.3 s") }
        #expect(!late.isEmpty)
        for error in late { expect(error, "broadcast of world", "in no call are ranks of world: 0") }
        // The others, and the silent one when it comes, learn of it.
        for error in errors { expect(error, "broadcast of world") }
    }

    @Test("a message too long is an error of both sides")
    func tooLong() throws {
        let errors = try errors(ranks: 3) { (ranks) throws(SparseKernelsError) in
            let message = try MessageBuffer(byteCount: 100)
            if ranks.rank == 0 {
                try ranks.wait(for: try ranks.send(message, 0..<11, to: 1, tag: 3))
            } else if ranks.rank == 1 {
                try ranks.wait(for: try ranks.receive(into: message, 0..<10, from: 0, tag: 3))
            } else {
                try ranks.wait(for: try ranks.receive(into: message, 0..<10, from: 1, tag: 3))
            }
        }
        expect(errors[1], "wait of world", "at most 10 bytes from rank 0", "11 bytes")
        for rank in [0, 2] { expect(errors[rank], "rank 1 of world failed", "at most 10 bytes from rank 0") }
    }

    @Test("collective calls want the lengths that they are told", arguments: [9, 11])
    func wrongCounts(_ length: Int) throws {
        let gather = try errors(ranks: 3) { (ranks) throws(SparseKernelsError) in
            let message = try MessageBuffer(byteCount: 100)
            try ranks.allGather(message, counts: ranks.rank == 1 ? [10, length, 10] : [10, 10, 10])
            try ranks.barrier()
        }
        for error in gather { expect(error, "exactly 10 bytes from rank 1") }
        let broadcast = try errors(ranks: 3) { (ranks) throws(SparseKernelsError) in
            let message = try MessageBuffer(byteCount: 100)
            try ranks.broadcast(message, 0..<(ranks.rank == 1 ? length : 10), from: 1)
            try ranks.barrier()
        }
        for error in broadcast { expect(error, "exactly 10 bytes from rank") }
    }

    @Test("a freed communicator is an error of the rank that calls it, and of those that wait for it")
    func freed() throws {
        let errors = try errors(ranks: 3) { (ranks) throws(SparseKernelsError) in
            let copy = try ranks.split(color: 0, key: 0, name: "copy")!
            if ranks.rank == 1 { copy.free() }
            try copy.barrier()
        }
        expect(errors[1], "barrier of world.copy", "before the communicator is freed", "rank 1")
        for rank in [0, 2] { #expect(errors[rank] != nil) }
        #expect(
            errors.contains {
                $0?.actual == "rank 1 has left the communicator" || $0?.actual.contains("rank 1 of world failed") == true
            })
    }

    @Test("one that was freed with messages under way leaves the others of its world alone")
    func freedTransfers() throws {
        let values = try LocalCommunicator.run(ranks: 2) { (ranks) throws(SparseKernelsError) in
            let copy = try ranks.split(color: 0, key: 0, name: "copy")!
            let message = try MessageBuffer(byteCount: 4)
            _ = try copy.send(message, 0..<4, to: 1 - ranks.rank, tag: 0)
            _ = try copy.receive(into: message, 0..<4, from: 1 - ranks.rank, tag: 1)
            copy.free()
            copy.free()
            return try ranks.gather([ranks.rank])
        }
        #expect(values == [[[0], [1]], [[0], [1]]])
    }

    @Test("after a failure every call of every communicator of the world fails")
    func laterCalls() throws {
        let errors = try errors(ranks: 2) { (ranks) throws(SparseKernelsError) in
            let copy = try ranks.split(color: 0, key: 0, name: "copy")!
            if ranks.rank == 1 { ranks.fail(SparseKernelsError(.notFound, "y", expected: "1", actual: "2")) }
            do throws(SparseKernelsError) { try copy.barrier() } catch {}
            try ranks.progress()
        }
        for error in errors { expect(error, "progress of world", "rank 1 of world failed", "y must be 1, got 2") }
    }

    @Test("ranks that disagree all learn who differs")
    func disagreement() throws {
        let errors = try errors(ranks: 3) { (ranks) throws(SparseKernelsError) in
            try ranks.agree(on: ranks.rank == 2 ? "8 heads" : "4 heads", "shape of the plan")
        }
        for error in errors { expect(error, "shape of the plan", "rank 0: 4 heads", "on rank 2: 8 heads") }
    }

    @Test("wrong arguments name themselves")
    func arguments() throws {
        let texts = try LocalCommunicator.run(ranks: 2) { (ranks) throws(SparseKernelsError) in
            let message = try MessageBuffer(byteCount: 10)
            let other = try MessageBuffer(byteCount: 10)
            let copy = try ranks.split(color: 0, key: 0, name: "copy")!
            let foreign = try copy.send(message, 0..<0, to: ranks.rank, tag: 0)
            var texts: [String] = []
            func note(_ body: () throws(SparseKernelsError) -> Void) {
                do throws(SparseKernelsError) {
                    try body()
                    texts.append("no error")
                } catch { texts.append(error.code == .invalidArgument ? error.argument : "\(error)") }
            }
            note { () throws(SparseKernelsError) in _ = try ranks.send(message, 0..<1, to: 2, tag: 0) }
            note { () throws(SparseKernelsError) in _ = try ranks.receive(into: message, 0..<1, from: -1, tag: 0) }
            note { () throws(SparseKernelsError) in _ = try ranks.send(message, 5..<11, to: 0, tag: 0) }
            note { () throws(SparseKernelsError) in _ = try ranks.receive(into: message, -1..<1, from: 0, tag: 0) }
            note { () throws(SparseKernelsError) in _ = try ranks.send(message, 0..<1, to: 0, tag: 32768) }
            note { () throws(SparseKernelsError) in _ = try ranks.receive(into: message, 0..<1, from: 0, tag: -1) }
            note { () throws(SparseKernelsError) in try ranks.broadcast(message, 0..<11, from: 0) }
            note { () throws(SparseKernelsError) in try ranks.broadcast(message, 0..<1, from: 2) }
            note { () throws(SparseKernelsError) in try ranks.allGather(message, counts: [1]) }
            note { () throws(SparseKernelsError) in try ranks.allGather(message, counts: [1, -1]) }
            note { () throws(SparseKernelsError) in try ranks.allGather(message, counts: [10, .max]) }
            note { () throws(SparseKernelsError) in
                try ranks.allToAll(from: message, counts: [5, 6], into: other, counts: [5, 5])
            }
            note { () throws(SparseKernelsError) in
                try ranks.allToAll(from: message, counts: [5, 5], into: other, counts: [5])
            }
            note { () throws(SparseKernelsError) in
                try ranks.allToAll(from: message, counts: [5, 5], into: message, counts: [5, 5])
            }
            note { () throws(SparseKernelsError) in _ = try ranks.split(color: -1, key: 0, name: "group") }
            note { () throws(SparseKernelsError) in try ranks.wait(for: foreign) }
            try ranks.barrier()
            return texts
        }
        let expected = [
            "rank of send", "rank of receive", "bytes of send", "bytes of receive", "tag of send", "tag of receive",
            "bytes of broadcast", "rank of broadcast", "counts", "counts[1]", "counts[1]", "sentCounts[1]",
            "receivedCounts",
        ]
        for rank in 0..<2 {
            #expect(Array(texts[rank].prefix(13)) == expected)
            #expect(Array(texts[rank].dropFirst(13)) == ["receivedCounts[\(rank)]", "color", "transfer of wait"])
        }
        for (ranks, limit) in [(0, 1.0), (2, 0), (2, -1), (2, .nan), (2, .infinity)] {
            #expect(throws: SparseKernelsError.self) {
                _ = try LocalCommunicator.run(ranks: ranks, timeLimit: limit) { (_) throws(SparseKernelsError) in 0 }
            }
        }
    }

    @Test("another thread's call is refused")
    func threads() throws {
        let codes = try LocalCommunicator.run(ranks: 2) { (ranks) throws(SparseKernelsError) in
            let code = Slots<SparseKernelsError.Code?>(count: 1, nil)
            let done = DispatchSemaphore(value: 0)
            nonisolated(unsafe) let shared = ranks
            Thread.detachNewThread {
                do throws(SparseKernelsError) { try shared.progress() } catch { code.set(error.code, at: 0) }
                done.signal()
            }
            done.wait()
            return code.values[0]
        }
        #expect(codes == [.invalidArgument, .invalidArgument])
    }
}

/// Values that threads set.
final class Slots<Value: Sendable>: Sendable {
    private let slots: Mutex<[Value]>

    init(count: Int, _ value: Value) { slots = Mutex(Array(repeating: value, count: count)) }

    var values: [Value] { slots.withLock { $0 } }

    func set(_ value: Value, at index: Int) { slots.withLock { $0[index] = value } }
}

final class Counter: Sendable {
    private let count = Mutex(0)

    var value: Int { count.withLock { $0 } }

    func add() { count.withLock { $0 += 1 } }
}
