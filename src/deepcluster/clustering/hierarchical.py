class HierarchicalKMeans: pass
def nearest_in_tree(*a): pass
