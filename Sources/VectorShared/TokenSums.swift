// Tiles over tokens of a cache: four query rows against `tokenTile` tokens, whose sums over lanes `storeTileSums` takes.

/// Sums of one token, with one vector per row.
public typealias TokenSums = (r0: Vector, r1: Vector, r2: Vector, r3: Vector)

/// Sums of products of codes of one token.
public typealias TokenCodeSums = (r0: CodeVector, r1: CodeVector, r2: CodeVector, r3: CodeVector)
