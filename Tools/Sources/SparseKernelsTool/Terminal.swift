import BenchmarkReport
import Dispatch
import Foundation

/// Prints a line at once, even through a pipe.
func printNow(_ text: String) {
    print(text)
    fflush(nil)
}

/// Prints a line on standard error, wherever standard output goes.
func printError(_ text: String) { FileHandle.standardError.write(Data("\(text)\n".utf8)) }

/// The progress line of a run on a terminal; nil elsewhere, where the rows on standard output are enough.
func terminalProgress(total: Int, work: Double) -> ProgressLine? {
    isatty(FileHandle.standardError.fileDescriptor) == 1 ? ProgressLine(total: total, work: work) : nil
}

/// Ends the process when it is interrupted, with a message on what remains. Files are written in one step, so any moment is
/// safe.
struct InterruptMessage {
    private let sources: [any DispatchSourceSignal]

    init(_ message: String) {
        sources = [SIGINT, SIGTERM].map { number in
            signal(number, SIG_IGN)
            let source = DispatchSource.makeSignalSource(signal: number, queue: .global())
            source.setEventHandler {
                FileHandle.standardError.write(Data("\n\(message)\n".utf8))
                _exit(128 + number)
            }
            source.resume()
            return source
        }
    }
}
