#if MPI
    internal import CMPI

    /// A message under way. It keeps its memory alive.
    ///
    /// A message of n bytes travels in ⌊n / p⌋ + 1 pieces, where p is `pieceBytes`; only the last is shorter than p, and it may be
    /// empty. So the receiver knows the end when it sees it. Pieces are sent at once and received one after the other.
    final class MPIOperation {
        let transfer: Transfer
        let isReceive: Bool
        let tag: Int
        let message: MessageBuffer
        let bytes: Range<Int>
        let exactly: Bool
        let pieceBytes: Int
        private let comm: sparse_mpi_comm
        private var requests: [sparse_mpi_request] = []
        private(set) var receivedBytes = 0

        init(
            _ comm: sparse_mpi_comm, _ transfer: Transfer, isReceive: Bool, tag: Int, _ message: MessageBuffer,
            _ bytes: Range<Int>,
            exactly: Bool, pieceBytes: Int
        ) {
            (self.comm, self.transfer, self.isReceive, self.tag) = (comm, transfer, isReceive, tag)
            (self.message, self.bytes, self.exactly, self.pieceBytes) = (message, bytes, exactly, pieceBytes)
        }

        private(set) var hasStarted = false

        /// Whether later messages of the same rank with the same tag have to wait until this one is here.
        var isLongReceive: Bool { isReceive && bytes.count >= pieceBytes }

        /// - Returns: an error code of MPI.
        func start() -> Int32 {
            hasStarted = true
            if isReceive { return receivePiece() }
            var start = bytes.lowerBound
            while true {
                let count = min(pieceBytes, bytes.upperBound - start)
                var request = sparse_mpi_request()
                let code = sparse_mpi_send(
                    comm, message.address + start, Int32(count), Int32(transfer.peer), Int32(tag), &request)
                if code != 0 { return code }
                requests.append(request)
                start += count
                if count < pieceBytes { return 0 }
            }
        }

        private func receivePiece() -> Int32 {
            let count = min(pieceBytes, bytes.count - receivedBytes)
            var request = sparse_mpi_request()
            let code = sparse_mpi_receive(
                comm, message.address + bytes.lowerBound + receivedBytes, Int32(count), Int32(transfer.peer), Int32(tag),
                &request)
            if code == 0 { requests = [request] }
            return code
        }

        /// - Returns: whether the message has been sent, or has come, and an error code of MPI.
        func test() -> (isFinished: Bool, code: Int32) {
            while let last = requests.indices.last {
                var (finished, count): (Int32, Int32) = (0, 0)
                let code = sparse_mpi_test(&requests[last], &finished, &count)
                if code != 0 || finished == 0 { return (false, code) }
                requests.removeLast()
                guard isReceive else { continue }
                receivedBytes += Int(count)
                if Int(count) == pieceBytes {
                    let code = receivePiece()
                    if code != 0 { return (false, code) }
                }
            }
            return (true, 0)
        }
    }
#endif
