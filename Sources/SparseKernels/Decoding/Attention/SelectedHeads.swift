/// The query heads of each key/value head and sequence, those that a selection has first.
///
/// With them in front, the selected heads of a group are adjacent rows, which read keys and values together.
struct SelectedHeads {
    private let kvHeads: Int
    /// Query heads of a key/value head.
    private let group: Int
    /// The head in its group of each place, for every sequence and key/value head.
    private var order: [Int32]
    /// The number of selected heads of every sequence and key/value head.
    private var counts: [Int32]

    init(_ selection: HeadSelection, kvHeads: Int, group: Int) {
        self.group = group
        self.kvHeads = kvHeads
        order = [Int32](repeating: 0, count: selection.sequences * kvHeads * group)
        counts = [Int32](repeating: 0, count: selection.sequences * kvHeads)
        // Query heads of an entry of the lists.
        let size = selection.heads == kvHeads ? group : 1
        for sequence in 0..<selection.sequences {
            let list = selection.list(sequence: sequence)
            var entry = list.startIndex
            for kvHead in 0..<kvHeads {
                let place = sequence * kvHeads + kvHead
                let limit = (kvHead + 1) * (group / size)
                let start = entry
                while entry < list.endIndex && Int(list[entry]) < limit { entry += 1 }
                let selected = (entry - start) * size
                counts[place] = Int32(truncatingIfNeeded: selected)
                var (front, back, next) = (place * group, place * group + selected, start)
                for head in 0..<group {
                    let number = Int32(truncatingIfNeeded: head)
                    if next < entry && Int(list[next]) == (kvHead * group + head) / size {
                        order[front] = number
                        front += 1
                        if (head + 1) % size == 0 { next += 1 }
                    } else {
                        order[back] = number
                        back += 1
                    }
                }
            }
        }
    }

    /// The head, within its group, of a place.
    func head(sequence: Int, kvHead: Int, place: Int) -> Int { Int(order[(sequence * kvHeads + kvHead) * group + place]) }

    /// The number of selected query heads of a key/value head.
    func count(sequence: Int, kvHead: Int) -> Int { Int(counts[sequence * kvHeads + kvHead]) }
}
