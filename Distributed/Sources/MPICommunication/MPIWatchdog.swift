#if MPI
    internal import Foundation

    /// Ends the process when a call of MPI that waits without end does so because of a rank that is not there. The few such calls are
    /// made right after all ranks have answered each other, so this is for ranks that die within milliseconds.
    enum MPIWatchdog {
        /// Seconds that such a call may take where messages may take `timeLimit`: starting and ending takes a second on a busy machine.
        static func limit(_ timeLimit: Double) -> Double { max(timeLimit, 30) }

        /// - Parameters:
        ///   - operation: what the text on standard error names.
        ///   - seconds: how long the call may take.
        ///   - processes: ranks of this host whose death ends the call, too.
        static func guarding<Result>(
            _ operation: String, seconds: Double, _ processes: [(rank: Int, process: MPIProcess)], _ body: () -> Result
        ) -> Result {
            let done = DispatchSemaphore(value: 0)
            Thread.detachNewThread {
                let deadline = WaitClock.now + seconds
                var deaths = 0
                while done.wait(timeout: .now() + 0.25) == .timedOut {
                    let dead = processes.first { !$0.process.isAlive }
                    deaths = dead == nil ? 0 : deaths + 1
                    // A dead rank may have done its part of the call before.
                    guard deaths >= 8 || WaitClock.now > deadline else { continue }
                    let reason = dead.map { "rank \($0.rank) of world, process \($0.process.number), has died" } ?? "no answer"
                    let error = SparseKernelsError(
                        .communication, operation, expected: "answered by all ranks within \(seconds) s", actual: reason)
                    try? FileHandle.standardError.write(contentsOf: Data("\(error)\n".utf8))
                    _exit(70)
                }
            }
            defer { done.signal() }
            return body()
        }
    }
#endif
