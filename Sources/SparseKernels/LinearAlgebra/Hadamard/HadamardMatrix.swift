/// Hadamard matrices of the orders 4·m, with m odd and at most 43: entries ±1, H · Hᵀ = order · 1.
///
/// They are constructed, not stored. With Sylvester's doubling and Kronecker products they give every order that
/// `HadamardRotation` offers.
package enum HadamardMatrix {
    /// The largest odd m of the orders 4·m. All odd m up to it are available; the order 4·47 = 188 would need tables.
    package static let largestOddFactor = 43

    /// The matrix of order `order` = 4·m, row-major, with m odd and 3 ≤ m ≤ `largestOddFactor`.
    package static func entries(order: Int) -> [Int8] {
        if isPrime(order - 1) { return paley1(prime: order - 1) }
        if isPrime(order / 2 - 1) && (order / 2 - 1) % 4 == 1 { return paley2(prime: order / 2 - 1) }
        guard let sequences = williamsonSequences[order / 4] else {
            preconditionFailure("no Hadamard matrix of order \(order)")
        }
        return williamson(sequences, length: order / 4)
    }

    // MARK: - Paley

    /// H = 1 + S with S = [0, 1ᵀ; −1, Q], Q_ij = χ(i − j), for a prime q ≡ 3 (mod 4). The order is q + 1.
    private static func paley1(prime q: Int) -> [Int8] {
        let character = quadraticCharacter(q)
        return square(q + 1) { row, column in
            if row == column { return 1 }
            if row == 0 { return 1 }
            if column == 0 { return -1 }
            return character[(row - column + q) % q]
        }
    }

    /// Replaces every entry of the symmetric S = [0, 1ᵀ; 1, Q] by a block: 0 → [1, −1; −1, −1], ±1 → ±[1, 1; 1, −1]. For a
    /// prime q ≡ 1 (mod 4). The order is 2·(q + 1).
    private static func paley2(prime q: Int) -> [Int8] {
        let character = quadraticCharacter(q)
        return square(2 * (q + 1)) { row, column in
            let (i, j) = (row / 2, column / 2)
            let isLast = row % 2 == 1 && column % 2 == 1
            if i == j { return row % 2 == 0 && column % 2 == 0 ? 1 : -1 }
            let entry = i == 0 || j == 0 ? 1 : character[(i - j + q) % q]
            return isLast ? -entry : entry
        }
    }

    /// χ(x) for x in 0..<q: 0 for 0, 1 for squares, −1 for the others.
    private static func quadraticCharacter(_ q: Int) -> [Int8] {
        var character = [Int8](repeating: -1, count: q)
        for x in 1..<q { character[x * x % q] = 1 }
        character[0] = 0
        return character
    }

    // MARK: - Williamson

    /// [A, B, C, D; −B, A, −D, C; −C, D, A, −B; −D, −C, B, A] of symmetric circulants with A² + B² + C² + D² = 4·n·1.
    private static func williamson(_ sequences: [UInt32], length n: Int) -> [Int8] {
        let blocks = [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]]
        let isNegative = [
            [false, false, false, false], [true, false, true, false], [true, false, false, true], [true, true, false, false],
        ]
        return square(4 * n) { row, column in
            let (i, j) = (row / n, column / n)
            // The position in the first row of the circulant is column − row, folded to 0…(n − 1) / 2.
            let distance = (column - row + 4 * n) % n
            let position = min(distance, n - distance)
            let minus = position > 0 && sequences[blocks[i][j]] >> (position - 1) & 1 == 1
            return minus != isNegative[i][j] ? -1 : 1
        }
    }

    /// The first rows a₀ = 1, a₁ … a_{(n−1)/2} of the four circulants: bit i − 1 is set where aᵢ = −1. These are the orders
    /// without a prime for Paley's constructions.
    ///
    /// They were found by exhausting small sets: for 39, three sequences that multiplication of the indices by 16 permutes; for
    /// the others except 43, all sequences. Those of 43 are Williamson's (1944), as in handbooks and SageMath.
    private static let williamsonSequences: [Int: [UInt32]] = [
        13: [0x3e, 0x32, 0x25, 0x16],
        23: [0x753, 0x60d, 0x531, 0x390],
        25: [0xfa3, 0x6b8, 0x5a2, 0x346],
        29: [0xb94, 0x394c, 0x3966, 0x3441],
        39: [0x7d346, 0x2bc37, 0x159f9, 0x3c977],
        43: [0x1e6d0e, 0x1a1594, 0x9af02, 0x122867],
    ]

    // MARK: - Helpers

    private static func square(_ order: Int, _ entry: (_ row: Int, _ column: Int) -> Int8) -> [Int8] {
        (0..<order * order).map { entry($0 / order, $0 % order) }
    }

    private static func isPrime(_ n: Int) -> Bool {
        n >= 2 && !(2..<n).prefix { $0 * $0 <= n }.contains { n % $0 == 0 }
    }
}
