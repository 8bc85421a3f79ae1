/// Compression to a zlib stream (RFC 1950, RFC 1951) in one block with the fixed codes.
///
/// Matches are found through chains of places whose next three bytes have the same hash. A match is put off where the one at the next
/// byte is longer.
struct Deflate {
    private let input: UnsafeBufferPointer<UInt8>
    private var output: [UInt8] = []
    private var bits: UInt64 = 0
    private var bitCount = 0
    /// The last place of every hash, and the one before each place of the window.
    private var heads = [Int32](repeating: -1, count: 1 << hashBits)
    private var previous = [Int32](repeating: -1, count: window)

    private static let window = 1 << 15
    private static let hashBits = 15
    private static let longestMatch = 258
    /// Places that are compared: more find longer matches and take longer.
    private static let chainLength = 48

    private init(_ input: UnsafeBufferPointer<UInt8>) { self.input = input }

    static func compress(_ bytes: [UInt8]) -> [UInt8] {
        bytes.withUnsafeBufferPointer { input in
            var deflate = Deflate(input)
            deflate.run()
            return deflate.output
        }
    }

    private mutating func run() {
        output = [0x78, 0x9c]
        put(1, 1)
        put(1, 2)
        var position = 0
        var current = match(at: 0)
        while position < input.count {
            insert(position)
            let next = current.length > 0 && current.length < 32 ? match(at: position + 1) : (length: 0, distance: 0)
            if current.length == 0 || next.length > current.length {
                put(literal: input[position])
                position += 1
                current = current.length == 0 ? match(at: position) : next
                continue
            }
            put(length: current.length, distance: current.distance)
            // All places of a long match would fill the chains with copies of each other.
            let last = position + current.length
            for place in position + 1..<min(last, position + 64) { insert(place) }
            position = last
            current = match(at: position)
        }
        putReversed(0, 7)
        if bitCount % 8 != 0 { put(0, 8 - bitCount % 8) }
        let checksum = Checksums.adler32(input)
        for shift in [24, 16, 8, 0] as [UInt32] { output.append(UInt8(truncatingIfNeeded: checksum >> shift)) }
    }

    // MARK: - Matches

    private func hash(_ position: Int) -> Int {
        let word = UInt32(input[position]) | UInt32(input[position + 1]) << 8 | UInt32(input[position + 2]) << 16
        return Int((word &* 0x9e37_79b1) >> UInt32(32 - Self.hashBits))
    }

    private mutating func insert(_ position: Int) {
        guard position + 3 <= input.count else { return }
        let key = hash(position)
        previous[position % Self.window] = heads[key]
        heads[key] = Int32(truncatingIfNeeded: position)
    }

    /// The longest match that begins before `position`; length 0 for none.
    private func match(at position: Int) -> (length: Int, distance: Int) {
        guard position + 3 <= input.count else { return (0, 0) }
        let most = min(Self.longestMatch, input.count - position)
        var (length, distance) = (2, 0)
        var place = Int(heads[hash(position)])
        for _ in 0..<Self.chainLength {
            guard place >= 0, place < position, position - place <= Self.window - Self.longestMatch else { break }
            if length < most, input[place + length] == input[position + length] {
                var count = 0
                while count < most, input[place + count] == input[position + count] { count += 1 }
                if count > length { (length, distance) = (count, position - place) }
                if length == most { break }
            }
            let before = Int(previous[place % Self.window])
            // Places of the ring that were written since belong to other chains.
            guard before < place else { break }
            place = before
        }
        // Three bytes from far away take more bits than three literals.
        return distance == 0 || (length == 3 && distance > 4096) ? (0, 0) : (length, distance)
    }

    // MARK: - Bits

    private mutating func put(_ value: Int, _ count: Int) {
        bits |= UInt64(value) << UInt64(bitCount)
        bitCount += count
        while bitCount >= 8 {
            output.append(UInt8(truncatingIfNeeded: bits))
            bits >>= 8
            bitCount -= 8
        }
    }

    /// Codes are written from their highest bit on.
    private mutating func putReversed(_ code: Int, _ count: Int) {
        var reversed = 0
        for bit in 0..<count where code >> bit & 1 == 1 { reversed |= 1 << (count - 1 - bit) }
        put(reversed, count)
    }

    private mutating func put(literal byte: UInt8) {
        let symbol = Int(byte)
        symbol < 144 ? putReversed(0x30 + symbol, 8) : putReversed(0x190 + symbol - 144, 9)
    }

    private mutating func put(length: Int, distance: Int) {
        var symbol = 0
        if length == 258 {
            symbol = 28
        } else {
            let value = length - 3
            // Four codes for every power of two from 8 on.
            let extra = value < 8 ? 0 : value.bitWidth - value.leadingZeroBitCount - 3
            symbol = value < 8 ? value : 4 * extra + value >> extra
        }
        let code = 257 + symbol
        code < 280 ? putReversed(code - 256, 7) : putReversed(0xc0 + code - 280, 8)
        let extra = symbol < 8 || symbol == 28 ? 0 : symbol / 4 - 1
        put((length - 3) & (1 << extra - 1), length == 258 ? 0 : extra)
        let far = distance - 1
        let farExtra = far < 4 ? 0 : far.bitWidth - far.leadingZeroBitCount - 2
        putReversed(far < 4 ? far : 2 * farExtra + far >> farExtra, 5)
        put(far & (1 << farExtra - 1), farExtra)
    }
}
