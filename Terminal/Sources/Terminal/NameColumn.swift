/// Names in the form that a table shows: whole if they fit, otherwise without their middle, and all different.
///
/// The difference between names of layers may be anywhere in them. So every place of the cut is tried, from the middle
/// outwards, until all names differ. Reports for programs have the whole names.
public struct NameColumn: Sendable {
    /// The width of the widest shown name, in characters.
    public let width: Int
    private let limit: Int
    private let shortened: [String: String]

    /// - Parameters:
    ///   - names: all names of the table.
    ///   - limit: the most characters of a name; 8 or more.
    /// - Complexity: O(names · limit) string operations, if a name is too long.
    public init(_ names: [String], limit: Int) {
        let limit = max(8, limit)
        let all = Set(names)
        let long = all.filter { $0.count > limit }.sorted()
        let whole = all.subtracting(long)
        self.limit = limit
        shortened = long.isEmpty ? [:] : Self.shortened(long, beside: whole, limit: limit)
        width = max(whole.map(\.count).max() ?? 0, long.isEmpty ? 0 : limit)
    }

    /// The shown form of a name. A name that is not in the table is cut in its middle.
    public func text(_ name: String) -> String {
        if let text = shortened[name] { return text }
        return name.count > limit ? Self.cut(name, head: Self.heads(limit)[0], limit: limit) : name
    }

    private static func shortened(_ long: [String], beside whole: Set<String>, limit: Int) -> [String: String] {
        for head in heads(limit) {
            let texts = long.map { cut($0, head: head, limit: limit) }
            let different = Set(texts)
            if different.count == long.count && different.isDisjoint(with: whole) {
                return Dictionary(uniqueKeysWithValues: zip(long, texts))
            }
        }
        // They differ in several places that no single cut keeps, so they are numbered.
        var taken = whole
        var result: [String: String] = [:]
        var number = 0
        for name in long {
            var text = cut(name, head: heads(limit)[0], limit: limit)
            while !taken.insert(text).inserted {
                number += 1
                let ending = "…\(number)"
                text = name.prefix(max(0, limit - ending.count)) + ending
            }
            result[name] = text
        }
        return result
    }

    /// The numbers of characters before the cut, the best first.
    private static func heads(_ limit: Int) -> [Int] {
        let middle = (limit - 1) / 2
        return (0..<limit).sorted { (abs($0 - middle), $0) < (abs($1 - middle), $1) }
    }

    private static func cut(_ name: String, head: Int, limit: Int) -> String {
        name.prefix(head) + "…" + name.suffix(limit - 1 - head)
    }
}
