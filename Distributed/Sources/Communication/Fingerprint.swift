/// A number for a list of numbers, by which ranks compare what they are about to do. It is the same in every process.
///
/// FNV-1a over words of 64 bits: lists that differ have the same number by chance only, about once in 2⁶⁴.
public struct Fingerprint: Hashable, Sendable {
    public private(set) var value: UInt64 = 0xcbf2_9ce4_8422_2325

    public init() {}

    public mutating func add(_ number: Int) {
        value = (value ^ UInt64(bitPattern: Int64(number))) &* 0x100_0000_01b3
    }
}
