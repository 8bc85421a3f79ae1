#if MPI
    internal import Foundation

    /// A process that is a rank, as ranks of the same host see it.
    struct MPIProcess: Hashable {
        /// The host and its space of process numbers: containers of one host do not see each other's processes.
        let host: String
        let number: Int
        /// When it was started, in ticks of the system. Another process may get its number later. 0 where the system does not tell.
        let start: Int

        static func own() -> MPIProcess {
            let number = Int(getpid())
            let boot = try? String(contentsOfFile: "/proc/sys/kernel/random/boot_id", encoding: .utf8)
            let space = try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/ns/pid")
            let host = [ProcessInfo.processInfo.hostName, boot ?? "", space ?? ""].joined(separator: "/")
            return MPIProcess(host: host.filter { !$0.isWhitespace }, number: number, start: state(of: number)?.start ?? 0)
        }

        init(host: String, number: Int, start: Int) { (self.host, self.number, self.start) = (host, number, start) }

        // MARK: - As text

        var text: String { "\(number) \(start) \(host)" }

        init?(text: String) {
            let words = text.split(separator: " ", maxSplits: 2)
            guard words.count == 3, let number = Int(words[0]), let start = Int(words[1]) else { return nil }
            self.init(host: String(words[2]), number: number, start: start)
        }

        // MARK: - Life

        /// False for a process of this host that has ended, also when its parent has not yet asked why.
        var isAlive: Bool {
            if start == 0 { return kill(pid_t(number), 0) == 0 || errno == EPERM }
            guard let state = Self.state(of: number) else { return false }
            return state.start == start && state.code != "Z" && state.code != "X"
        }

        /// What Linux says of a process.
        private static func state(of number: Int) -> (code: Character, start: Int)? {
            // The second word is the name of the program in brackets, which may have blanks and brackets.
            guard let text = try? String(contentsOfFile: "/proc/\(number)/stat", encoding: .utf8),
                let bracket = text.lastIndex(of: ")")
            else { return nil }
            let words = text[text.index(after: bracket)...].split(separator: " ")
            guard words.count > 19, let code = words[0].first, let start = Int(words[19]) else { return nil }
            return (code, start)
        }
    }
#endif
