#if MPI
    internal import CMPI

    /// What ranks tell each other beside their messages. Every call that waits looks for it.
    struct MPIControl {
        enum Kind: UInt8 {
            /// The rank takes no further part: the text is its error.
            case failed = 1
            /// The rank has ended its use of MPI.
            case left
            /// The rank has freed the communicator that the text names.
            case freed
            /// The rank wants to know who is in a call of a communicator.
            case rollCall
            /// The rank is in a call.
            case here
        }

        var kind: Kind
        var text = ""

        /// The longest message. Such short ones are delivered without the receiver's help.
        static let longest = 2048
        static let tag: Int32 = 0

        var bytes: [UInt8] { [kind.rawValue] + text.utf8.prefix(Self.longest - 1) }

        init(_ kind: Kind, _ text: String = "") { (self.kind, self.text) = (kind, text) }

        init?(bytes: ArraySlice<UInt8>) {
            guard let kind = bytes.first.flatMap({ Kind(rawValue: $0) }) else { return nil }
            self.init(kind, String(decoding: bytes.dropFirst(), as: UTF8.self))
        }
    }

    /// The world's communicator for control messages.
    final class MPIControlChannel {
        private let comm: sparse_mpi_comm
        private var sending: [(message: MessageBuffer, request: sparse_mpi_request)] = []
        private var received = Array(repeating: UInt8(0), count: MPIControl.longest)

        init(_ comm: sparse_mpi_comm) { self.comm = comm }

        /// Starts to send. Failures are left to the watch over processes.
        func send(_ control: MPIControl, to rank: Int) {
            let bytes = control.bytes
            guard let message = try? MessageBuffer(byteCount: bytes.count) else { return }
            message.address.copyMemory(from: bytes, byteCount: bytes.count)
            var request = sparse_mpi_request()
            let code = sparse_mpi_send(comm, message.address, Int32(bytes.count), Int32(rank), MPIControl.tag, &request)
            if code == 0 { sending.append((message, request)) }
        }

        /// Forgets the messages that have been sent.
        /// - Returns: whether all have.
        func flush() -> Bool {
            var index = 0
            while index < sending.count {
                var (finished, count): (Int32, Int32) = (0, 0)
                let code = sparse_mpi_test(&sending[index].request, &finished, &count)
                if finished != 0 || code != 0 { sending.remove(at: index) } else { index += 1 }
            }
            return sending.isEmpty
        }

        /// A message that has come.
        func take() -> (rank: Int, control: MPIControl)? {
            var (found, source, count): (Int32, Int32, Int32) = (0, 0, 0)
            guard sparse_mpi_probe(comm, MPIControl.tag, &found, &source, &count) == 0, found != 0 else { return nil }
            guard sparse_mpi_take(comm, &received, Int32(received.count), source, MPIControl.tag) == 0 else { return nil }
            guard let control = MPIControl(bytes: received[..<min(Int(count), received.count)]) else { return take() }
            return (Int(source), control)
        }
    }
#endif
