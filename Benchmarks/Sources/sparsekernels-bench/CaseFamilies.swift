/// Every family of cases, in the order of the tables.
var caseFamilies: [any CaseFamily.Type] {
    [
        GEMMCases.self, AttentionCases.self, SparseAttentionCases.self, ScoringCases.self, PrefillCases.self,
        QuantizedGEMMCases.self, QuantizationErrorCases.self, RowCases.self, DecodeCases.self, BranchCases.self,
        DecodeUpkeepCases.self, DecodeQualityCases.self, BlockAttentionCases.self, VideoCases.self,
        RecurrenceCases.self, ContextualCases.self, VisionCases.self, RankCases.self,
    ]
}
