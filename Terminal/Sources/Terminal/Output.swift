import Dispatch
import Foundation

/// Prints a line at once, even through a pipe.
public func printNow(_ text: String) {
    print(text)
    fflush(nil)
}

/// Prints a line on standard error, wherever standard output goes.
public func printError(_ text: String) { FileHandle.standardError.write(Data("\(text)\n".utf8)) }

/// Ends the process when it is interrupted, with a message on what remains. Files are written in one step, so any moment is
/// safe.
public struct InterruptMessage {
    private let sources: [any DispatchSourceSignal]

    public init(_ message: String) {
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
