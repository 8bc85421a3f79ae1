import SequenceParallel
import Testing

@Suite("TokenShards")
struct TokenShardsTests {
    @Test("every token is in one shard, in ascending rows", arguments: [1, 2, 3, 4, 8], [1, 2, 3, 5])
    func partition(_ ulysses: Int, _ ring: Int) throws {
        for length in [0, 1, 2, 7, 31, 32, 33, 100, 257] {
            for alignment in [1, 4, 16] {
                let zigzag = try TokenShards.zigzag(length: length, ulysses: ulysses, ring: ring, alignment: alignment)
                let ordered = try TokenShards.contiguous(length: length, ranks: ulysses * ring, alignment: alignment)
                for shards in [zigzag, ordered] {
                    #expect(shards.length == length && shards.ranks == ulysses * ring)
                    var owners = Array(repeating: -1, count: length)
                    for rank in 0..<shards.ranks {
                        let tokens = shards.positions(of: rank)
                        #expect(tokens == tokens.sorted() && tokens.count == shards.count(of: rank))
                        for (row, token) in tokens.enumerated() {
                            #expect(owners[token] == -1 && shards.owner(of: token) == rank && shards.row(of: token) == row)
                            owners[token] = rank
                        }
                        for range in shards.ranges[rank] {
                            #expect(range.lowerBound % alignment == 0)
                            #expect(range.upperBound % alignment == 0 || range.upperBound == length)
                        }
                    }
                    #expect(!owners.contains(-1))
                }
            }
        }
    }

    @Test(
        "the ranks of a group have the two chunks of their member of the ring, in order", arguments: [1, 2, 3, 4], [1, 2, 4])
    func groups(_ ulysses: Int, _ ring: Int) throws {
        for length in [48, 96, 97, 131] {
            let shards = try TokenShards.zigzag(length: length, ulysses: ulysses, ring: ring)
            // 2 · ring chunks by quotient and remainder.
            let starts = (0...2 * ring).map { length / (2 * ring) * $0 + min($0, length % (2 * ring)) }
            for member in 0..<ring {
                let (first, second) = (member, 2 * ring - 1 - member)
                let chunks = Array(starts[first]..<starts[first + 1]) + Array(starts[second]..<starts[second + 1])
                let group = (0..<ulysses).map { shards.positions(of: member * ulysses + $0) }
                #expect(group.flatMap { $0 } == chunks)
                let counts = group.map(\.count)
                #expect(counts.max()! - counts.min()! <= 1)
            }
        }
    }

    @Test("a zigzag gives every member of a causal ring the same work", arguments: [2, 3, 4, 8])
    func balance(_ ring: Int) throws {
        let length = 4096
        let shards = try TokenShards.zigzag(length: length, ulysses: 1, ring: ring)
        // The keys that the queries of a rank see.
        let work = (0..<ring).map { shards.positions(of: $0).reduce(0) { $0 + $1 + 1 } }
        let mean = Double(length * (length + 1) / 2) / Double(ring)
        #expect(Double(work.max()!) <= 1.05 * mean)
        // Shards in order are what it is for.
        let ordered = try TokenShards.contiguous(length: length, ranks: ring)
        #expect(Double(ordered.positions(of: ring - 1).reduce(0) { $0 + $1 + 1 }) > 1.4 * mean)
    }

    @Test("ranges that touch become one, and equal shards are equal")
    func merging() throws {
        let shards = try TokenShards(length: 9, ranges: [[0..<2, 2..<4, 7..<9], [4..<7], []])
        #expect(shards.ranges == [[0..<4, 7..<9], [4..<7], []])
        #expect(shards == (try TokenShards(length: 9, ranges: [[0..<4, 7..<9], [4..<7], []])))
        #expect(shards.row(of: 8) == 5 && shards.owner(of: 5) == 1 && shards.largestCount == 6 && shards.count(of: 2) == 0)
    }

    @Test("shards of given lengths are in order")
    func lengths() throws {
        let shards = try TokenShards.contiguous(lengths: [11, 0, 14])
        #expect(shards.length == 25 && shards.ranges == [[0..<11], [], [11..<25]])
    }

    @Test("the largest numbers do not overflow")
    func largest() throws {
        let shards = try TokenShards.contiguous(length: .max, ranks: 3, alignment: 1 << 40)
        #expect(shards.ranges.last?.last?.upperBound == .max)
        #expect(try TokenShards.zigzag(length: .max, ulysses: 3, ring: 5, alignment: .max).count(of: 0) == .max)
    }

    @Test("a sharding that is none is an error that names what is wrong")
    func errors() throws {
        func expect(_ argument: String, _ actual: String, _ body: () throws(SparseKernelsError) -> TokenShards) {
            do throws(SparseKernelsError) {
                _ = try body()
                Issue.record("no error for \(argument)")
            } catch {
                #expect(error.code == .invalidArgument && error.argument == argument && error.actual == actual)
            }
        }
        expect("ranges", "token 2 in those of ranks [0, 1]") { () throws(SparseKernelsError) in
            try TokenShards(length: 5, ranges: [[0..<3], [2..<5]])
        }
        expect("ranges", "token 3 in none") { () throws(SparseKernelsError) in
            try TokenShards(length: 5, ranges: [[0..<3], [4..<5]])
        }
        expect("ranges", "token 4 in none") { () throws(SparseKernelsError) in try TokenShards(length: 5, ranges: [[0..<4]]) }
        expect("ranges[0][1]", "0..<2") { () throws(SparseKernelsError) in
            try TokenShards(length: 5, ranges: [[2..<5, 0..<2]])
        }
        expect("ranges[1][0]", "4..<6") { () throws(SparseKernelsError) in
            try TokenShards(length: 5, ranges: [[0..<4], [4..<6]])
        }
        expect("ranges[0][0]", "3..<3") { () throws(SparseKernelsError) in try TokenShards(length: 5, ranges: [[3..<3]]) }
        expect("ranges", "0") { () throws(SparseKernelsError) in try TokenShards(length: 0, ranges: []) }
        expect("length", "-1") { () throws(SparseKernelsError) in try .contiguous(length: -1, ranks: 2) }
        expect("alignment", "0") { () throws(SparseKernelsError) in try .contiguous(length: 1, ranks: 2, alignment: 0) }
        expect("ring", "0") { () throws(SparseKernelsError) in try .zigzag(length: 1, ulysses: 2, ring: 0) }
        expect("ulysses · ring", "4294967296") { () throws(SparseKernelsError) in
            try .zigzag(length: 1, ulysses: 1 << 16, ring: 1 << 16)
        }
        expect("lengths[1]", "-3") { () throws(SparseKernelsError) in try .contiguous(lengths: [4, -3]) }
        expect("lengths[1]", "\(Int.max)") { () throws(SparseKernelsError) in try .contiguous(lengths: [1, .max]) }
    }
}
