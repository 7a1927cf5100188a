"""(see design)"""
